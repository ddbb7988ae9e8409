"""All VisionLLM nodes. Not in `__init__`: whoever imports the library needs no server."""

from .ask import VisionLLMAsk
from .conditioning import VisionLLMEditConditioning, VisionLLMGenerateConditioning
from .detect import VisionLLMDetect
from .detections import (
    nodes_boxes as tools_boxes,
)
from .detections import (
    nodes_draw as tools_draw,
)
from .detections import (
    nodes_files as tools_files,
)
from .detections import (
    nodes_keypoints as tools_keypoints,
)
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
    *tools_boxes.NODES,
    *tools_draw.NODES,
    *tools_files.NODES,
    *tools_keypoints.NODES,
]
