"""VisionLLM Pose: named keypoints of things, with any skeleton."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..nodes.common import show, valid
from .detections.json_document import document, frame
from .detections.keypoints import to_keypoints
from .detections.pose_keypoint import to_pose_keypoint
from .detections.skeletons import PRESETS, bones_of
from .model import prompt_templates
from .model.perception import pose
from .node_io import JSON_TOOLTIP, each, image_input, model_input, names_of, threshold_input, top_k_input
from .sockets import CATEGORY, KEYPOINTS, POSE_KEYPOINT

OWN = "own keypoints"


class VisionLLMPose(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMPose",
            display_name="VisionLLM Pose",
            category=CATEGORY,
            description="Finds named keypoints of people, animals, faces, hands or any other object, for ControlNet "
            "and for masks.",
            search_aliases=[
                "pose estimation",
                "pose detection",
                "openpose",
                "dwpose",
                "keypoints",
                "skeleton",
                "animal pose",
                "hand pose",
                "face landmarks",
                "unipose",
                "姿态估计",
                "关键点",
                "姿勢推定",
                "자세 추정",
                "points clés",
                "Körperhaltung",
                "оценка позы",
                "puntos clave",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                model_input(),
                image_input(),
                io.String.Input(
                    "objects",
                    default="",
                    tooltip="Objects to find keypoints of: one name or several, separated by commas. Empty: the object "
                    "the skeleton belongs to, such as person.",
                ),
                io.Combo.Input(
                    "skeleton",
                    options=[*PRESETS, OWN],
                    default=next(iter(PRESETS)),
                    tooltip="Set of keypoints to find. OpenPose nodes can draw person, animal, face and hand. own "
                    "keypoints: the names you list in keypoints.",
                ),
                io.String.Input(
                    "keypoints",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="For own keypoints: up to 68 names, one per line or separated by commas, such as left ear, "
                    "tip of the tail. Names known from a skeleton above are joined by its bones.",
                ),
                threshold_input(0.3, "Drops objects below this score."),
                top_k_input(20, "Maximum objects per image, best first."),
            ],
            outputs=[
                KEYPOINTS.Output(
                    display_name="keypoints",
                    tooltip="Objects with named keypoints and the skeleton's bones, for the keypoint nodes.",
                ),
                POSE_KEYPOINT.Output(
                    display_name="pose",
                    tooltip="Keypoints in OpenPose format, for nodes that draw poses. If own keypoints do not fit this "
                    "format, nodes connected here do not run.",
                ),
                io.BoundingBox.Output(
                    display_name="bboxes",
                    tooltip="Bounding boxes of the objects in pixels with label and score, one list per image, best "
                    "first.",
                ),
                io.Int.Output(display_name="count", tooltip="Total number of objects across all images."),
                io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, objects, skeleton, keypoints=""):
        if skeleton not in (*PRESETS, OWN, None):
            return f"skeleton: {skeleton!r} is none of {', '.join((*PRESETS, OWN))}"
        return valid(_asked, objects, skeleton, keypoints)

    @classmethod
    def execute(cls, visionllm, image, objects, skeleton, threshold, top_k, keypoints="") -> io.NodeOutput:
        things, points, bones = _asked(objects, skeleton, keypoints)
        found = to_keypoints(
            each(image, lambda picture: pose(visionllm, picture, things, points, count=top_k, threshold=threshold)),
            bones,
        )
        boxes = [
            [{**thing["box"], "label": thing["label"], "score": thing["score"]} for thing in record["objects"]]
            for record in found
        ]
        try:
            openpose = to_pose_keypoint(found)
        except ValueError as error:
            openpose = ExecutionBlocker(f"VisionLLM Pose: {error}.")
        written = document(
            "pose", ", ".join(things), [frame(record["width"], record["height"], keypoints=record) for record in found]
        )
        count = sum(map(len, boxes))
        shown = f"{count} found, {len(points)} keypoints each" if count else "nothing found"
        return io.NodeOutput(found, openpose, boxes, count, written, ui=show(cls, shown, written))


def _asked(objects: str, skeleton: str, keypoints: str) -> tuple[list[str], list[str], list]:
    """-> objects, keypoints, bones. Raises ValueError that begins with the field."""
    if skeleton == OWN:
        points = names_of("keypoints", keypoints)
        things = names_of("objects", objects)
        bones = bones_of(points)
    else:
        preset = PRESETS[skeleton]
        points, bones = list(preset.keypoints), preset.bones
        things = names_of("objects", objects) if objects.strip() else [preset.object]
    try:
        prompt_templates.pose(things, points)
    except ValueError as error:
        raise ValueError(f"objects and keypoints: {error}") from error
    return things, points, bones
