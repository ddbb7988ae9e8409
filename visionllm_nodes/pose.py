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
            description="Finds the keypoints of people, animals, faces, hands or anything with points that have names, for ControlNet and for masks.",
            search_aliases=[
                "pose estimation",
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
                "поза",
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
                    tooltip="Whose keypoints: one name or several, with commas. Empty: what the skeleton belongs to, such as person.",
                ),
                io.Combo.Input(
                    "skeleton",
                    options=[*PRESETS, OWN],
                    default=next(iter(PRESETS)),
                    tooltip="Which keypoints. Person, animal, face and hand are drawn by OpenPose nodes; own keypoints are the ones "
                    "named below.",
                ),
                io.String.Input(
                    "keypoints",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="For own keypoints: their names, one per line or with commas between them, at most 68: left ear, tip of the "
                    "tail. Where names are those of a skeleton above, its bones join them.",
                ),
                threshold_input(0.3, "Objects with a lower score are left out."),
                top_k_input(20, "objects"),
            ],
            outputs=[
                KEYPOINTS.Output(
                    display_name="keypoints", tooltip="Objects, keypoints by name and bones, for the keypoint nodes."
                ),
                POSE_KEYPOINT.Output(
                    display_name="pose",
                    tooltip="In OpenPose's form, for the nodes that draw it. Own keypoints that have no place in it stop what is "
                    "connected here.",
                ),
                io.BoundingBox.Output(
                    display_name="bboxes", tooltip="The objects' boxes in pixels, with label and score; the best first."
                ),
                io.Int.Output(display_name="count", tooltip="How many objects were found in all pictures."),
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
