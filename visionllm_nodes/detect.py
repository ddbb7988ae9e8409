"""VisionLLM Detect: every object that matches a name."""

from __future__ import annotations

from comfy_api.latest import io

from ..nodes import categories
from ..nodes.common import validate, with_field_name
from .detections.names import split_names
from .model.perception import NAMES_PER_PROMPT, check_names, detect
from .model.selection import MAX_DETECTIONS
from .node_io import (
    VisionLLMNode,
    detection_output,
    detection_outputs,
    for_each_image,
    image_input,
    json_masks_input,
    model_input,
    parse_names,
    threshold_input,
    top_k_input,
)

OFF, PER_NAME, ACROSS = NMS = ("off", "per name", "across names")


class VisionLLMDetect(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMDetect",
            display_name="VisionLLM Detect",
            category=categories.VISIONLLM,
            description="Finds every object that matches one of your names, in any language. Returns a box, a mask "
            "and a score for each.",
            search_aliases=[
                "object detection",
                "open vocabulary detection",
                "text to box",
                "find objects",
                "bounding box",
                "bbox",
                "instance segmentation",
                "grounding dino",
                "yolo",
                "count objects",
                "bounding boxes",
                "detect by text",
                "find by description",
                "locate objects",
                "text to detections",
                "detectar objetos",
                "detect objects",
                "物体检测",
                "目标检测",
                "物体検出",
                "객체 탐지",
                "détection d'objets",
                "Objekterkennung",
                "обнаружение объектов",
                "detección de objetos",
                "वस्तु पहचान",
                "検出する",
                "객체 감지",
                "détecter des objets",
                "детекция объектов",
            ],
            is_output_node=True,
            inputs=[
                model_input(),
                image_input(),
                io.String.Input(
                    "names",
                    multiline=True,
                    default="person, dog",
                    tooltip="What to find: one name per line or separated by commas, in any language. Repeated names "
                    f"count once. Lists of more than {NAMES_PER_PROMPT} names are split into several prompts.",
                ),
                threshold_input(0.3, "Drops detections below this score."),
                top_k_input(MAX_DETECTIONS),
                io.Int.Input(
                    "per_name",
                    default=0,
                    min=0,
                    max=900,
                    optional=True,
                    advanced=True,
                    tooltip="Maximum detections per name in each image. 0: no limit.",
                ),
                io.Combo.Input(
                    "nms",
                    options=list(NMS),
                    default=OFF,
                    optional=True,
                    advanced=True,
                    tooltip="Non-maximum suppression: removes overlapping boxes, keeping the best. per name: among "
                    "boxes of the same name. across names: among all boxes, so each object keeps only its "
                    "best name. off: the authors' setting; one object may be found under several names.",
                ),
                io.Float.Input(
                    "nms_overlap",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="IoU threshold of nms: boxes that overlap more than this are duplicates.",
                ),
                json_masks_input(),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Names of what is not meant, such as 'toy car' for 'car': an object that one of them fits "
                    "better is left out.",
                ),
            ],
            outputs=detection_outputs(),
        )

    @classmethod
    def validate_inputs(cls, names, negative=""):
        return [validate(parse_names, "names", names), validate(_negative, names, negative)]

    @classmethod
    def execute(
        cls,
        visionllm,
        image,
        names,
        threshold,
        top_k,
        per_name=0,
        nms=OFF,
        nms_overlap=0.7,
        masks_in_json=False,
        negative="",
    ) -> io.NodeOutput:
        wanted, unwanted = parse_names("names", names), _negative(names, negative)
        detections = for_each_image(
            image,
            lambda frame: detect(
                visionllm,
                frame,
                wanted,
                negative=unwanted,
                max_detections=top_k,
                threshold=threshold,
                max_per_name=per_name or None,
                iou_threshold=None if nms == OFF else nms_overlap,
                class_agnostic=nms == ACROSS,
            ),
        )
        return detection_output("detect", ", ".join(wanted), detections, masks_in_json)


def _negative(names: str, negative: str) -> list[str]:
    """Return the negative names. Raise ValueError that begins with the field, also for too many with the names."""
    if not negative.strip():
        return []
    unwanted = parse_names("negative", negative)
    with_field_name("negative", check_names, [*split_names(names), *unwanted])
    return unwanted
