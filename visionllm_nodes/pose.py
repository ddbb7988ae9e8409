"""VisionLLM Pose: named keypoints of objects, with any skeleton."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..nodes import categories
from ..nodes.common import show_text, validate, with_field_name
from .detections.json_document import frame_record, write_document
from .detections.keypoints import to_keypoints
from .detections.pose_keypoint import to_pose_keypoint
from .detections.skeletons import PRESETS, bones_of
from .model import prompt_templates
from .model.perception import pose
from .node_io import (
    JSON_TOOLTIP,
    KEYPOINTS,
    POSE_KEYPOINT,
    VisionLLMNode,
    for_each_image,
    image_input,
    model_input,
    parse_names,
    threshold_input,
    top_k_input,
)

OWN = "own keypoints"


class VisionLLMPose(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMPose",
            display_name="VisionLLM Pose",
            category=categories.VISIONLLM,
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
                "animal face landmarks",
                "insect pose",
                "clothes keypoints",
                "fashion landmarks",
                "car keypoints",
                "furniture keypoints",
                "openpose from text",
                "pose from text",
                "estimation de pose",
                "Posenerkennung",
                "pose humana",
                "姿态估计",
                "关键点",
                "姿勢推定",
                "자세 추정",
                "points clés",
                "Körperhaltung",
                "оценка позы",
                "puntos clave",
                "포즈 추정",
                "поза человека",
                "骨架检测",
            ],
            is_output_node=True,
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
                    tooltip="Set of keypoints to find. OpenPose nodes can draw person, macaque, animal (AP-10K), face "
                    "and hand; Draw Detections draws all. own keypoints: the names you list in keypoints.",
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
            return f"skeleton: {skeleton!r} is not one of {', '.join((*PRESETS, OWN))}"
        return validate(_parse, objects, skeleton, keypoints)

    @classmethod
    def execute(cls, visionllm, image, objects, skeleton, threshold, top_k, keypoints="") -> io.NodeOutput:
        names, points, bones = _parse(objects, skeleton, keypoints)
        poses = for_each_image(
            image, lambda frame: pose(visionllm, frame, names, points, max_detections=top_k, threshold=threshold)
        )
        records = to_keypoints(poses, bones)
        boxes = [
            [{**found["box"], "label": found["label"], "score": found["score"]} for found in record["objects"]]
            for record in records
        ]
        try:
            openpose = to_pose_keypoint(records)
        except ValueError as error:
            openpose = ExecutionBlocker(f"VisionLLM Pose: {error}.")
        frames = [frame_record(record["width"], record["height"], keypoints=record) for record in records]
        written = write_document("pose", ", ".join(names), frames)
        count = sum(map(len, boxes))
        summary = f"{count} found, {len(points)} keypoints each" if count else "nothing found"
        return io.NodeOutput(records, openpose, boxes, count, written, ui=show_text(summary, written))


def _parse(objects: str, skeleton: str, keypoints: str) -> tuple[list[str], list[str], Sequence[tuple[int, int]]]:
    """Return names of objects, keypoints and bones. Raise ValueError that begins with the field."""
    if skeleton == OWN:
        points = parse_names("keypoints", keypoints)
        names = parse_names("objects", objects)
        bones = bones_of(points)
    else:
        preset = PRESETS[skeleton]
        points, bones = list(preset.keypoints), preset.bones
        names = parse_names("objects", objects) if objects.strip() else [preset.object]
    with_field_name("objects and keypoints", prompt_templates.pose, names, points)
    return names, points, bones
