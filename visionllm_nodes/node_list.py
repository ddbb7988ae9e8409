"""All VisionLLM nodes. Not in `__init__`: the library must be importable without ComfyUI's server."""

from .ask import VisionLLMAsk
from .check_images import VisionLLMCheckImages
from .conditioning import VisionLLMEditConditioning, VisionLLMGenerateConditioning
from .detect import VisionLLMDetect
from .detections.nodes_answers import VisionLLMTextToBoxes
from .detections.nodes_box_conversions import (
    VisionLLMBoxesToBBOX,
    VisionLLMBoxesToMask,
    VisionLLMBoxesToSEGS,
    VisionLLMMaskToBoxes,
)
from .detections.nodes_boxes import VisionLLMFilterBoxes, VisionLLMPickBox
from .detections.nodes_class_names import VisionLLMClassNames
from .detections.nodes_draw import VisionLLMDrawDetections
from .detections.nodes_files import VisionLLMLoadDetections, VisionLLMSaveDetections
from .detections.nodes_find_alike import InternVLFindAlike
from .detections.nodes_keypoints import VisionLLMKeypointsToPose, VisionLLMKeypointsToRegions, VisionLLMPoseToKeypoints
from .detections.nodes_region_prompts import MuLanRegionPrompts
from .detections.nodes_track import VisionLLMTrackDetections
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
    VisionLLMCheckImages,
    VisionLLMGenerateConditioning,
    VisionLLMEditConditioning,
    VisionLLMFilterBoxes,
    VisionLLMPickBox,
    VisionLLMTextToBoxes,
    VisionLLMBoxesToMask,
    VisionLLMMaskToBoxes,
    VisionLLMBoxesToSEGS,
    VisionLLMBoxesToBBOX,
    VisionLLMDrawDetections,
    VisionLLMSaveDetections,
    VisionLLMLoadDetections,
    VisionLLMKeypointsToRegions,
    VisionLLMKeypointsToPose,
    VisionLLMPoseToKeypoints,
    VisionLLMTrackDetections,
    MuLanRegionPrompts,
    InternVLFindAlike,
    VisionLLMClassNames,
]
