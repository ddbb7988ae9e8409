"""Types of wires that ComfyUI has no class for."""

from comfy_api.latest import io

KEYPOINTS = io.Custom("KEYPOINTS")
POSE_KEYPOINT = io.Custom("POSE_KEYPOINT")
CATEGORY = "image/detection"
