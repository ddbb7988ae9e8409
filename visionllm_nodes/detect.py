"""VisionLLM Detect: every thing of the named kinds."""

from __future__ import annotations

from comfy_api.latest import io

from ..nodes.common import valid
from .model.perception import NAMES_AT_ONCE, detect
from .model.selection import THINGS
from .node_io import (
    each,
    found_output,
    found_outputs,
    image_input,
    json_masks_input,
    model_input,
    names_of,
    threshold_input,
    top_k_input,
)
from .sockets import CATEGORY

OFF, PER_NAME, ACROSS = NMS = ("off", "per name", "across names")


class VisionLLMDetect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMDetect",
            display_name="VisionLLM Detect",
            category=CATEGORY,
            description="Finds every thing of the kinds you name, in words of any language: a box, a mask and a score for each.",
            search_aliases=[
                "object detection",
                "open vocabulary detection",
                "find objects",
                "bounding box",
                "bbox",
                "instance segmentation",
                "grounding dino",
                "yolo",
                "count objects",
                "物体检测",
                "目标检测",
                "物体検出",
                "객체 탐지",
                "détection d'objets",
                "Objekterkennung",
                "обнаружение объектов",
                "detección de objetos",
                "पहचान",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                model_input(),
                image_input(),
                io.String.Input(
                    "names",
                    multiline=True,
                    default="person, dog",
                    tooltip="What to find: one name per line, or commas between them. Any language, any thing; a repeated name counts once. "
                    f"More than {NAMES_AT_ONCE} names are asked in several rounds, as the model was trained on lists of about "
                    "that length.",
                ),
                threshold_input(0.3, "Things with a lower score are left out."),
                top_k_input(THINGS, "things"),
                io.Int.Input(
                    "per_name",
                    default=0,
                    min=0,
                    max=900,
                    optional=True,
                    advanced=True,
                    tooltip="At most so many things of each name in a picture. 0: no limit.",
                ),
                io.Combo.Input(
                    "nms",
                    options=list(NMS),
                    default=OFF,
                    optional=True,
                    advanced=True,
                    tooltip="Of boxes around one place only the best stays. The model's authors do without (off), and so one thing may be "
                    "found under several names; across names leaves it the best one.",
                ),
                io.Float.Input(
                    "nms_overlap",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="For nms: boxes count as one place where their intersection is more than this part of their union.",
                ),
                json_masks_input(),
            ],
            outputs=found_outputs(),
        )

    @classmethod
    def validate_inputs(cls, names):
        return valid(lambda text: names_of("names", text), names)

    @classmethod
    def execute(
        cls, visionllm, image, names, threshold, top_k, per_name=0, nms=OFF, nms_overlap=0.7, masks_in_json=False
    ) -> io.NodeOutput:
        asked = names_of("names", names)
        found = each(
            image,
            lambda picture: detect(
                visionllm,
                picture,
                asked,
                count=top_k,
                threshold=threshold,
                per_name=per_name or None,
                overlap=None if nms == OFF else nms_overlap,
                across_names=nms == ACROSS,
            ),
        )
        return found_output(cls, "detect", ", ".join(asked), found, masks_in_json)
