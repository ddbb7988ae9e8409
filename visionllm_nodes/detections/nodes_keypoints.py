"""Nodes for keypoints of any skeleton: to boxes, masks and points, and to and from OpenPose's form."""

from __future__ import annotations

from comfy_api.latest import io

from ..sockets import CATEGORY, KEYPOINTS, POSE_KEYPOINT
from . import keypoints as records
from .names import split_names
from .pose_keypoint import from_pose_keypoint, to_pose_keypoint


class VisionLLMKeypointsToRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMKeypointsToRegions",
            display_name="Keypoints to Boxes, Masks and Points",
            category=CATEGORY,
            description="What chosen keypoints cover: a box, a mask and points for each object. From eyes and nose to a face, from paws to what SAM "
            "cuts out.",
            search_aliases=[
                "keypoints to bbox",
                "keypoints to mask",
                "pose to mask",
                "points to coordinates",
                "SAM points",
                "face from pose",
                "关键点转遮罩",
                "キーポイントをマスクに",
                "puntos clave a máscara",
                "ключевые точки в маску",
            ],
            inputs=[
                KEYPOINTS.Input("keypoints", tooltip="Of VisionLLM Pose, of Pose to Keypoints or a loaded file."),
                io.String.Input(
                    "names",
                    default="",
                    multiline=True,
                    tooltip="Only these keypoints: one per line or separated by commas. Empty takes all.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Only keypoints with at least this score. VisionLLM v2 gives 1 to all of its keypoints.",
                ),
                io.Int.Input(
                    "margin",
                    default=8,
                    min=0,
                    max=16384,
                    tooltip="Pixels around keypoints, to each side: of the boxes, the discs, the bones and the hull.",
                ),
                io.Combo.Input(
                    "shape",
                    options=list(records.SHAPES),
                    tooltip="The masks: discs on the keypoints, the bones between them, or the hull around them.",
                ),
            ],
            outputs=[
                io.BoundingBox.Output(
                    display_name="bboxes",
                    tooltip="A box around the keypoints of each object that has some, a list for each picture.",
                ),
                io.Mask.Output(display_name="mask", tooltip="For each picture what belongs to any of its objects."),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="A mask for each object, in the order of the boxes; a single empty one where there is none.",
                ),
                io.String.Output(
                    display_name="points",
                    is_output_list=True,
                    tooltip='The keypoints as JSON [{"x": 12, "y": 34}, ...], for positive_coords of SAM3 Detect; a text for each '
                    "picture.",
                ),
            ],
        )

    @classmethod
    def execute(cls, keypoints, names, threshold, margin, shape) -> io.NodeOutput:
        frames, chosen = records.checked(keypoints), split_names(names)
        records.check_names(frames, chosen)
        if len({(frame["width"], frame["height"]) for frame in frames}) > 1:
            raise ValueError("the keypoints belong to pictures of several sizes: masks of one batch must have one size")
        union, each = records.keypoint_masks(frames, shape, chosen, threshold, margin)
        points = [
            records.coordinates(
                point for thing in frame["objects"] for point in records.chosen(thing, chosen, threshold)
            )
            for frame in frames
        ]
        return io.NodeOutput(records.keypoint_boxes(frames, chosen, threshold, margin), union, each, points)


class VisionLLMKeypointsToPose(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMKeypointsToPose",
            display_name="Keypoints to Pose",
            category=CATEGORY,
            description="Keypoints in OpenPose's form, placed by their names: body, feet, face, hands, and AP-10K animals. SDPose Draw Keypoints "
            "and the nodes of comfyui_controlnet_aux draw it for ControlNet.",
            search_aliases=[
                "openpose",
                "POSE_KEYPOINT",
                "dwpose",
                "controlnet pose",
                "关键点转姿态",
                "キーポイントをポーズに",
                "포즈",
                "puntos clave a pose",
                "ключевые точки в позу",
            ],
            inputs=[
                KEYPOINTS.Input("keypoints", tooltip="Of VisionLLM Pose or a loaded file."),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Keypoints with a lower score count as not found.",
                ),
            ],
            outputs=[
                POSE_KEYPOINT.Output(
                    display_name="pose",
                    tooltip="A dict for each picture. Confidences are 1 or 0, as all drawers need them; the true scores "
                    "stand beside them.",
                )
            ],
        )

    @classmethod
    def execute(cls, keypoints, threshold) -> io.NodeOutput:
        return io.NodeOutput(to_pose_keypoint(records.checked(keypoints), threshold))


class VisionLLMPoseToKeypoints(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMPoseToKeypoints",
            display_name="Pose to Keypoints",
            category=CATEGORY,
            description="Poses of SDPose, DWPose, OpenPose or AnimalPose nodes as named keypoints: for boxes, masks, drawing and files.",
            search_aliases=[
                "openpose",
                "POSE_KEYPOINT",
                "dwpose",
                "animal pose",
                "姿态转关键点",
                "ポーズをキーポイントに",
                "pose a puntos clave",
                "поза в ключевые точки",
            ],
            inputs=[
                POSE_KEYPOINT.Input(
                    "pose", tooltip="POSE_KEYPOINT of ComfyUI's SDPose nodes or of comfyui_controlnet_aux."
                )
            ],
            outputs=[
                KEYPOINTS.Output(
                    display_name="keypoints",
                    tooltip="A record for each picture. Keypoints that were not found have the score 0.",
                )
            ],
        )

    @classmethod
    def execute(cls, pose) -> io.NodeOutput:
        return io.NodeOutput(from_pose_keypoint(pose))


NODES = [VisionLLMKeypointsToRegions, VisionLLMKeypointsToPose, VisionLLMPoseToKeypoints]
