"""VisionLLM Region: questions about regions marked by a mask, boxes or points."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..nodes import categories
from ..nodes.common import show_text, validate
from .detections.class_lists import COCO, LVIS
from .detections.json_document import write_document
from .detections.results import Detections, no_detections
from .model import prompt_templates
from .model.answers import answer
from .model.in_context import detect_like_examples
from .model.perception import detect_at_regions, detect_similar
from .model.prefill import progress_share
from .model.selection import MAX_DETECTIONS, Limits
from .node_io import (
    VisionLLMNode,
    detection_frames,
    detection_outputs,
    detection_values,
    for_each_image,
    image_input,
    json_masks_input,
    model_input,
    summarize,
    threshold_input,
    top_k_input,
)
from .region_prompts import Regions, parse_points, region_inputs, regions_per_image

SEGMENT, ALIKE, COUNT, DESCRIBE, NAME = "segment", "find alike", "count", "describe", "name"
CLOSED_LISTS = {f"{NAME} ({names})": names for names in (COCO, LVIS)}
IN_WORDS = (DESCRIBE, NAME, *CLOSED_LISTS)
QUESTIONS = (SEGMENT, ALIKE, COUNT, *IN_WORDS)
IOU_THRESHOLD = 0.7  # two marks on similar objects would find each object twice
DESCRIPTION_TOKENS, NAME_TOKENS = 64, 16


class VisionLLMRegion(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMRegion",
            display_name="VisionLLM Region",
            category=categories.VISIONLLM,
            description="Segments, counts, describes or names what you mark with a mask, boxes or points, or finds "
            "everything similar.",
            search_aliases=[
                "visual prompt",
                "segment by point",
                "segment by box",
                "segment anything",
                "sam",
                "mask to text",
                "region caption",
                "count similar",
                "find similar",
                "t-rex",
                "describe region",
                "ask about region",
                "区域描述",
                "以图找物",
                "類似物を数える",
                "領域の説明",
                "영역 설명",
                "décrire une zone",
                "Bereich beschreiben",
                "описание области",
                "contar objetos",
            ],
            is_output_node=True,
            inputs=[
                model_input(),
                image_input(),
                io.Combo.Input(
                    "question",
                    options=list(QUESTIONS),
                    default=SEGMENT,
                    tooltip="segment: the object under each region. find alike: every similar object, the marked ones "
                    "included. count: the same, counted. describe: one sentence per region. name: one or two "
                    "words per region. name (COCO-80), name (LVIS-1203): one of the names of this list, see Class "
                    "Names.",
                ),
                *region_inputs(),
                threshold_input(0.3, "find alike and count: drops detections below this score."),
                top_k_input(MAX_DETECTIONS, "find alike and count: maximum detections per image, best first."),
                json_masks_input(),
                io.Image.Input(
                    "example",
                    optional=True,
                    tooltip="Images in which mask, bboxes and points mark something, to find it in image: the object "
                    "most like it with segment, all with find alike and count. All regions show the same thing.",
                ),
            ],
            outputs=[
                *detection_outputs(
                    "Bounding boxes in pixels with label and score, one list per image. segment: one per region, "
                    "in the order of the regions. find alike and count: best first. describe and name: the marked "
                    "regions, with the answer as label."
                ),
                io.String.Output(
                    display_name="text",
                    tooltip="describe and name: the answers, one line per region. Other questions: a short summary "
                    "of the detections.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, question, mask="", bboxes="", points=""):
        """Check the regions as far as they are known before the run.

        A connected input is None here, an unconnected one keeps its "". `question` is always there: ComfyUI calls this
        only with inputs.
        """
        if question not in (*QUESTIONS, None):
            return f"question: {question!r} is not one of {', '.join(QUESTIONS)}"
        if mask == bboxes == "" and points is not None and not points.strip():
            return "mask, bboxes, points: no region is marked. Connect a mask or boxes, or enter points."
        return validate(parse_points, points)

    @classmethod
    def execute(
        cls,
        visionllm,
        image,
        question,
        threshold,
        top_k,
        mask=None,
        bboxes=None,
        points="",
        masks_in_json=False,
        example=None,
    ) -> io.NodeOutput:
        if example is not None and question in IN_WORDS:
            raise ValueError(f"question: {question} is about regions of image itself. Disconnect example")
        marked = image if example is None else example
        regions = regions_per_image(
            [(frame.shape[0], frame.shape[1]) for frame in marked], visionllm.settings.tower, mask, bboxes, points
        )
        if not any(map(len, regions)):
            raise ValueError(
                "mask, bboxes, points: no region is marked in any image. Connect a mask or boxes, or enter points."
            )
        limits = Limits(top_k, threshold, iou_threshold=IOU_THRESHOLD, class_agnostic=True)
        if example is None:
            detections = for_each_image(
                list(zip(image, regions, strict=True)), lambda pair: _ask(visionllm, *pair, question, limits)
            )
        else:
            limits = Limits(max_detections=1) if question == SEGMENT else limits
            shown = [frame for frame, of_frame in zip(example, regions, strict=True) for _ in of_frame.marks]
            marks = torch.cat([of_frame.marks for of_frame in regions])
            detections = for_each_image(
                list(image), lambda frame: detect_like_examples(visionllm, frame, shown, marks, limits)
            )
        texts = ["\n".join(found.names) if question in IN_WORDS else summarize(found) for found in detections]
        values = detection_values(detections)
        record = write_document(question, question, detection_frames(detections, values[0], masks_in_json, texts))
        text = "\n\n".join(texts)
        return io.NodeOutput(*values, record, text, ui=show_text(text, record))


def _ask(visionllm, image, regions: Regions, question: str, limits: Limits) -> Detections:
    if not len(regions):
        return no_detections(regions.size)
    if question == SEGMENT:
        return detect_at_regions(visionllm, image, regions.marks)
    if question in (ALIKE, COUNT):
        return detect_similar(visionllm, image, regions.marks, limits)
    return regions.to_detections(_answers(visionllm, image, question, regions))


def _answers(visionllm, image, question: str, regions: Regions) -> list[str]:
    """Return a text for each region; the model takes one region at a time."""
    turn, max_tokens = (
        (prompt_templates.region_caption(), DESCRIPTION_TOKENS)
        if question == DESCRIBE
        else (prompt_templates.region_category(CLOSED_LISTS.get(question)), NAME_TOKENS)
    )
    replies = []
    for index, mark in enumerate(regions.marks):
        with progress_share(index, len(regions)):
            replies += answer(visionllm, [image], [[turn]], region_masks=mark[None], max_tokens=max_tokens)
    texts = [" ".join(reply.plain_text.split()) for reply in replies]
    return [text.lower().removesuffix(".") for text in texts] if question in CLOSED_LISTS else texts
