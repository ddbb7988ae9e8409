"""All VisionLLM nodes. Not in `__init__`: whoever imports the library needs no server."""
from . import tools_boxes, tools_draw, tools_files, tools_keypoints
from .ask import VisionLLMAsk
from .conditioning import VisionLLMEditConditioning, VisionLLMGenerateConditioning
from .detect import VisionLLMDetect
from .ground import VisionLLMGround
from .instruct import VisionLLMInstruct
from .loader import VisionLLMLoader
from .pose import VisionLLMPose
from .region import VisionLLMRegion
from .segment import VisionLLMSegment

NODES = [VisionLLMLoader, VisionLLMDetect, VisionLLMGround, VisionLLMSegment, VisionLLMPose, VisionLLMRegion, VisionLLMAsk, VisionLLMInstruct,
         VisionLLMGenerateConditioning, VisionLLMEditConditioning, *tools_boxes.NODES, *tools_draw.NODES, *tools_files.NODES, *tools_keypoints.NODES]
