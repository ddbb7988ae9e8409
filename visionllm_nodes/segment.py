"""VisionLLM Segment: a mask per object, or one name for every pixel."""

from __future__ import annotations

from comfy_api.latest import io

from ..nodes import categories
from ..nodes.common import validate
from .detections.names import unique_names
from .model.perception import detect, segment
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

SEMANTIC, INSTANCE = MODES = ("semantic", "instance")


class VisionLLMSegment(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMSegment",
            display_name="VisionLLM Segment",
            category=categories.VISIONLLM,
            description="Creates masks of what you name. semantic assigns one name to every pixel (sky, road, wall); "
            "instance returns a separate mask for each object.",
            search_aliases=[
                "semantic segmentation",
                "instance segmentation",
                "segment anything",
                "text to mask",
                "mask by text",
                "ade20k",
                "background mask",
                "segment anything by text",
                "segment by text",
                "mask from text",
                "image segmentation",
                "grounded sam",
                "segmentation d'image",
                "语义分割",
                "实例分割",
                "セグメンテーション",
                "이미지 분할",
                "segmentation sémantique",
                "Segmentierung",
                "сегментация",
                "segmentación",
                "图像分割",
                "画像分割",
                "세그멘테이션",
                "segmentación de imagen",
            ],
            is_output_node=True,
            inputs=[
                model_input(),
                image_input(),
                io.String.Input(
                    "names",
                    multiline=True,
                    default="person, dog",
                    tooltip="What to segment: one name per line or separated by commas, in any language.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=SEMANTIC,
                    tooltip="semantic: one mask per name; every pixel belongs to exactly one name. instance: one "
                    "mask per object.",
                ),
                io.String.Input(
                    "others",
                    multiline=True,
                    default="background",
                    optional=True,
                    tooltip="semantic only: names for the remaining pixels, such as wall, floor, sky. They are not "
                    "returned. All names go into one prompt; the model was trained on up to 150.",
                ),
                threshold_input(0.3, "instance only: drops detections below this score."),
                top_k_input(MAX_DETECTIONS, "instance only: maximum detections per image, best first."),
                json_masks_input(),
            ],
            outputs=detection_outputs(
                "Bounding boxes in pixels with label and score, one list per image. semantic: one box around "
                "all pixels of a name, with score 1, in the order of the names. Names without pixels have no "
                "box."
            ),
        )

    @classmethod
    def validate_inputs(cls, names, others=""):
        return validate(_all_names, names, others)

    @classmethod
    def execute(cls, visionllm, image, names, mode, threshold, top_k, others="", masks_in_json=False) -> io.NodeOutput:
        wanted, every = parse_names("names", names), _all_names(names, others)
        if mode == INSTANCE:
            detections = for_each_image(
                image, lambda frame: detect(visionllm, frame, wanted, max_detections=top_k, threshold=threshold)
            )
        else:
            areas = for_each_image(image, lambda frame: segment(visionllm, frame, every).to_detections())
            detections = [found.select(found.labels < len(wanted)) for found in areas]
        return detection_output(f"segment ({mode})", ", ".join(wanted), detections, masks_in_json)


def _all_names(names: str, others: str) -> list[str]:
    """Return the wanted names, then the others; a name in both lists is wanted."""
    wanted = parse_names("names", names)
    return unique_names([*wanted, *parse_names("others", others)]) if others.strip() else wanted
