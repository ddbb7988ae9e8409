"""Nodes for keypoints of any skeleton: to boxes, masks and points, and to and from OpenPose format."""

from __future__ import annotations

from comfy_api.latest import io

from ...nodes import categories
from ..node_io import KEYPOINTS, POSE_KEYPOINT, VisionLLMNode
from . import keypoints as records
from .names import split_names
from .pose_keypoint import from_pose_keypoint, to_pose_keypoint


class VisionLLMKeypointsToRegions(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMKeypointsToRegions",
            display_name="Keypoints to Boxes, Masks and Points",
            category=categories.DETECTIONS,
            description="Converts selected keypoints to a box, a mask and points for each object, such as a face box "
            "from eyes and nose, or point prompts for SAM.",
            search_aliases=[
                "keypoints to bbox",
                "keypoints to mask",
                "pose to mask",
                "points to coordinates",
                "SAM points",
                "face from pose",
                "face mask from pose",
                "hand mask from pose",
                "关键点转遮罩",
                "キーポイントをマスクに",
                "키포인트를 마스크로",
                "puntos clave a máscara",
                "ключевые точки в маску",
            ],
            inputs=[
                KEYPOINTS.Input(
                    "keypoints", tooltip="Keypoints from VisionLLM Pose, Pose to Keypoints or Load Detections."
                ),
                io.String.Input(
                    "names",
                    default="",
                    multiline=True,
                    tooltip="Keypoints to use, one per line or separated by commas. Empty uses all.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Ignores keypoints below this score. VisionLLM v2 scores all its keypoints 1.",
                ),
                io.Int.Input(
                    "margin",
                    default=8,
                    min=0,
                    max=16384,
                    tooltip="Pixels to add around the keypoints: on each side of the boxes, and around the discs, "
                    "bones or hull of the masks.",
                ),
                io.Combo.Input(
                    "shape",
                    options=list(records.SHAPES),
                    tooltip="Shape of the masks. points: discs on the keypoints. bones: the bones between them. "
                    "hull: the convex hull around them.",
                ),
            ],
            outputs=[
                io.BoundingBox.Output(
                    display_name="bboxes",
                    tooltip="Bounding boxes around the selected keypoints, one list per image. Objects without such "
                    "keypoints have no box.",
                ),
                io.Mask.Output(display_name="mask", tooltip="Union mask: one per image, covering all its objects."),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="One mask per object, in the order of the boxes. A single empty mask if there is no "
                    "object.",
                ),
                io.String.Output(
                    display_name="points",
                    is_output_list=True,
                    tooltip='Keypoints as JSON [{"x": 12, "y": 34}, ...], one string per image, for positive_coords of '
                    "SAM3 Detect.",
                ),
            ],
        )

    @classmethod
    def execute(cls, keypoints, names, threshold, margin, shape) -> io.NodeOutput:
        frames, chosen = keypoints, split_names(names)
        records.check_keypoint_names(frames, chosen)
        if len({(frame["width"], frame["height"]) for frame in frames}) > 1:
            raise ValueError(
                "keypoints: they belong to images of different sizes, but the masks of a batch must have one size"
            )
        union, masks = records.keypoint_masks(frames, shape, chosen, threshold, margin)
        points = [
            records.points_json(
                point for found in frame["objects"] for point in records.select_keypoints(found, chosen, threshold)
            )
            for frame in frames
        ] or ["[]"]
        return io.NodeOutput(records.keypoint_boxes(frames, chosen, threshold, margin), union, masks, points)


class VisionLLMKeypointsToPose(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMKeypointsToPose",
            display_name="Keypoints to Pose",
            category=categories.DETECTIONS,
            description="Converts keypoints to OpenPose format by their names: body, feet, face, hands and AP-10K "
            "animals. For SDPose Draw Keypoints and comfyui_controlnet_aux.",
            search_aliases=[
                "keypoints to openpose",
                "POSE_KEYPOINT",
                "dwpose",
                "controlnet pose",
                "draw skeleton",
                "关键点转姿态",
                "キーポイントをポーズに",
                "키포인트를 포즈로",
                "puntos clave a pose",
                "ключевые точки в позу",
            ],
            inputs=[
                KEYPOINTS.Input("keypoints", tooltip="Keypoints from VisionLLM Pose or Load Detections."),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Treats keypoints below this score as not found.",
                ),
            ],
            outputs=[
                POSE_KEYPOINT.Output(
                    display_name="pose",
                    tooltip="Poses in OpenPose format, one per image. Confidences are 1 or 0, as drawing nodes need "
                    "them; the original scores are kept as well.",
                )
            ],
        )

    @classmethod
    def execute(cls, keypoints, threshold) -> io.NodeOutput:
        return io.NodeOutput(to_pose_keypoint(keypoints, threshold))


class VisionLLMPoseToKeypoints(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMPoseToKeypoints",
            display_name="Pose to Keypoints",
            category=categories.DETECTIONS,
            description="Converts poses from SDPose, DWPose, OpenPose or AnimalPose nodes to named keypoints, for "
            "boxes, masks, drawing and saving.",
            search_aliases=[
                "openpose to keypoints",
                "POSE_KEYPOINT",
                "dwpose",
                "animal pose",
                "姿态转关键点",
                "ポーズをキーポイントに",
                "포즈를 키포인트로",
                "pose a puntos clave",
                "поза в ключевые точки",
            ],
            inputs=[
                POSE_KEYPOINT.Input("pose", tooltip="POSE_KEYPOINT from the SDPose nodes or comfyui_controlnet_aux.")
            ],
            outputs=[
                KEYPOINTS.Output(
                    display_name="keypoints",
                    tooltip="Named keypoints, one record per image. Keypoints that were not found have score 0.",
                )
            ],
        )

    @classmethod
    def execute(cls, pose) -> io.NodeOutput:
        return io.NodeOutput(from_pose_keypoint(pose))
