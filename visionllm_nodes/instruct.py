"""VisionLLM Instruct: an instruction, for which the model itself chooses the tools."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..nodes import categories
from ..nodes.common import show_progress, show_text, validate, with_field_name
from .detections.json_document import frame_record, write_document
from .detections.keypoints import to_keypoints
from .detections.results import no_detections
from .detections.skeletons import bones_of
from .model import prompt_templates
from .model.answers import MAX_TOKENS
from .model.selection import MAX_DETECTIONS, Limits
from .model.tool_use import Instruction, instruct
from .node_io import (
    KEYPOINTS,
    VisionLLMNode,
    detection_frames,
    detection_outputs,
    detection_values,
    for_each_image,
    json_masks_input,
    model_input,
    threshold_input,
    to_conditioning,
    top_k_input,
)

NO_IMAGE = (64, 64)  # size of empty masks where no image is connected


class VisionLLMInstruct(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMInstruct",
            display_name="VisionLLM Instruct",
            category=categories.VISIONLLM,
            description="Follows an instruction: the model answers and decides itself whether to detect, segment, "
            "find keypoints, generate or edit.",
            search_aliases=[
                "vision agent",
                "follow instruction",
                "tool use",
                "grounded caption",
                "describe and locate",
                "natural language",
                "chat and detect",
                "指令跟随",
                "自然语言",
                "自然言語で指示",
                "자연어 지시",
                "instruction en langage naturel",
                "Anweisung befolgen",
                "выполнить инструкцию",
                "seguir instrucción",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                model_input(),
                io.String.Input(
                    "sentence",
                    multiline=True,
                    dynamic_prompts=True,
                    default="Can you analyze the image and identify the person, dog present?",
                    tooltip="Instruction, in any language. The model chooses which tools to use. The help page lists "
                    "instructions it was trained on.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Images to work on. Each image of a batch is processed separately. Not needed to "
                    "generate a new image.",
                ),
                threshold_input(
                    0.3, "Drops detections below this score, except the single object a sentence refers to."
                ),
                top_k_input(MAX_DETECTIONS),
                io.Int.Input(
                    "max_tokens",
                    default=MAX_TOKENS,
                    min=1,
                    max=4096,
                    optional=True,
                    tooltip="Maximum number of tokens to generate.",
                ),
                json_masks_input(),
            ],
            outputs=[
                io.String.Output(
                    display_name="text",
                    is_output_list=True,
                    tooltip="List of answers, one per image, without tool tokens.",
                ),
                *detection_outputs(
                    "Bounding boxes in pixels of what the answer's [DET], [GRD] and [SEG] tokens found, one list "
                    "per image. The label is the text before each token."
                ),
                KEYPOINTS.Output(
                    display_name="keypoints",
                    tooltip="Keypoints found by the answer's [POSE] tokens. They include the boxes of their objects.",
                ),
                io.Conditioning.Output(
                    display_name="generate",
                    tooltip="Conditioning for Stable Diffusion 1.5 from the answer's [GEN] token. If the answer has "
                    "none, nodes connected here do not run.",
                ),
                io.Conditioning.Output(
                    display_name="edit",
                    tooltip="Conditioning for InstructPix2Pix from the answer's [EDIT] token. If the answer has none, "
                    "nodes connected here do not run.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, sentence):
        return validate(prompt_templates.chat, sentence, field="sentence")

    @classmethod
    def execute(
        cls, visionllm, sentence, threshold, top_k, image=None, max_tokens=MAX_TOKENS, masks_in_json=False
    ) -> io.NodeOutput:
        with_field_name("sentence", prompt_templates.chat, sentence)
        limits = Limits(top_k, threshold)
        results = for_each_image(
            [None] if image is None else image,
            lambda frame: instruct(
                visionllm,
                frame,
                sentence,
                limits=limits,
                max_tokens=max_tokens,
                on_text=lambda texts: show_progress(cls, texts[0]),
            ),
        )
        size = NO_IMAGE if image is None else tuple(image.shape[1:3])
        texts = [result.reply.plain_text for result in results]
        detections = [result.detections or no_detections(size) for result in results]
        keypoints = [_keypoints(result, size) for result in results]
        values = detection_values(detections)
        frames = []
        if image is not None:
            boxes = detection_frames(detections, values[0], masks_in_json, texts)
            frames = [_with_keypoints(*parts) for parts in zip(boxes, keypoints, strict=True)]
        record = write_document("instruct", sentence, frames, texts[0] if image is None else None)
        replies = "\n\n".join("\n".join((result.reply.text, *result.notes)) for result in results)
        contexts = (_conditioning([getattr(result, kind) for result in results]) for kind in ("generate", "edit"))
        return io.NodeOutput(texts, *values, record, keypoints, *contexts, ui=show_text(replies, record))


def _keypoints(result: Instruction, size: tuple[int, int]) -> dict:
    if result.keypoints is None:
        return {"width": size[1], "height": size[0], "objects": [], "skeleton": []}
    return to_keypoints([result.keypoints], bones_of(result.keypoints.keypoint_names))[0]


def _with_keypoints(boxes: dict, keypoints: dict) -> dict:
    """Return a frame of the document: first the objects with boxes, then those with keypoints."""
    if not keypoints["objects"]:
        return boxes
    points = frame_record(keypoints["width"], keypoints["height"], keypoints=keypoints)
    return {**boxes, "skeleton": points["skeleton"], "objects": boxes["objects"] + points["objects"]}


def _conditioning(contexts: list[torch.Tensor | None]):
    """Return [B, 77, 768] of the images whose answer has one; block the branch silently where none has."""
    given = [context for context in contexts if context is not None]
    return to_conditioning(torch.cat(given)) if given else ExecutionBlocker(None)
