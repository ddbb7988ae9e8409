"""VisionLLM Ground: the one object that a phrase or question refers to."""

from __future__ import annotations

from comfy_api.latest import io

from ..nodes import categories
from ..nodes.common import validate, with_field_name
from .model import prompt_templates
from .model.perception import detect_salient, ground
from .node_io import (
    VisionLLMNode,
    detection_output,
    detection_outputs,
    for_each_image,
    image_input,
    json_masks_input,
    model_input,
    threshold_input,
)

PHRASE, QUESTION, STANDS_OUT, HIDES = KINDS = ("phrase", "question", "what stands out", "what hides")
LABELS = {STANDS_OUT: "salient object", HIDES: "camouflaged object"}


class VisionLLMGround(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMGround",
            display_name="VisionLLM Ground",
            category=categories.VISIONLLM,
            description="Finds the one object that a phrase or question refers to, such as 'the dog on the left', or "
            "that stands out or hides. Returns its box, mask and score.",
            search_aliases=[
                "referring expression",
                "visual grounding",
                "find by sentence",
                "referring segmentation",
                "reasoning segmentation",
                "text to mask",
                "text to box",
                "find by description",
                "locate object",
                "phrase grounding",
                "grounding",
                "salient object detection",
                "camouflaged object detection",
                "remove background",
                "foreground mask",
                "指代分割",
                "视觉定位",
                "参照表現",
                "지칭 표현",
                "segmentation par phrase",
                "Satz zu Maske",
                "поиск по фразе",
            ],
            is_output_node=True,
            inputs=[
                model_input(),
                image_input(),
                io.String.Input(
                    "sentence",
                    multiline=True,
                    default="the dog on the left",
                    tooltip="Phrase or question that refers to the object, in any language.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default=PHRASE,
                    optional=True,
                    tooltip="phrase: a description of the object, such as 'the left dog'. question: a sentence that "
                    "needs reasoning, sent to the model unchanged, such as 'Which of these keeps the rain "
                    "off?' what stands out: the salient object. what hides: the camouflaged object. Both need no "
                    "sentence.",
                ),
                threshold_input(
                    0.0, "Returns nothing below this score. 0 always returns the best match, however poor."
                ),
                json_masks_input(),
            ],
            outputs=detection_outputs(
                "At most one box per image, in pixels with label and score. No box below the threshold."
            ),
        )

    @classmethod
    def validate_inputs(cls, sentence, kind=PHRASE):
        """Check the sentence where it is used. `kind`: ComfyUI leaves to this method what it names."""
        if kind not in (*KINDS, None):
            return f"kind: {kind!r} is not one of {', '.join(KINDS)}"
        if kind not in (PHRASE, QUESTION):
            return True
        return validate(prompt_templates.grounding, sentence, field="sentence")

    @classmethod
    def execute(cls, visionllm, image, sentence, kind=PHRASE, threshold=0.0, masks_in_json=False) -> io.NodeOutput:
        if kind in LABELS:
            sentence = LABELS[kind]
            best = for_each_image(
                image, lambda frame: detect_salient(visionllm, frame, sentence, camouflaged=kind == HIDES)
            )
        else:
            with_field_name("sentence", prompt_templates.grounding, sentence)
            best = for_each_image(image, lambda frame: ground(visionllm, frame, sentence, reasoning=kind == QUESTION))
        detections = [found.select(found.scores >= threshold) for found in best]
        return detection_output("ground", sentence, detections, masks_in_json)
