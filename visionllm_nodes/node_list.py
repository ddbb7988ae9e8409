"""All VisionLLM nodes. Not in `__init__`: whoever imports the library needs no server."""

from .ask import VisionLLMAsk
from .conditioning import VisionLLMEditConditioning, VisionLLMGenerateConditioning
from .detect import VisionLLMDetect
from .detections import nodes_boxes, nodes_draw, nodes_files, nodes_keypoints
from .ground import VisionLLMGround
from .instruct import VisionLLMInstruct
from .loader import VisionLLMLoader
from .pose import VisionLLMPose
from .region import VisionLLMRegion
from .segment import VisionLLMSegment

NODES = [
    VisionLLMLoader,
    VisionLLMDetect,
    VisionLLMGround,
    VisionLLMSegment,
    VisionLLMPose,
    VisionLLMRegion,
    VisionLLMAsk,
    VisionLLMInstruct,
    VisionLLMGenerateConditioning,
    VisionLLMEditConditioning,
    *nodes_boxes.NODES,
    *nodes_draw.NODES,
    *nodes_files.NODES,
    *nodes_keypoints.NODES,
]
