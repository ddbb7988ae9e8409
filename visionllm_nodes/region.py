"""VisionLLM Region: questions about places that a mask, boxes or points show."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

from ..nodes.common import show, valid
from .detections.results import Detections, nothing
from .model import prompt_templates
from .model.answers import answer
from .model.perception import detect_similar, detect_at_regions
from .model.selection import MAX_DETECTIONS, Limits
from .node_io import (
    each,
    found_outputs,
    image_input,
    json_masks_input,
    model_input,
    summary,
    threshold_input,
    top_k_input,
    values_of,
)
from .region_prompts import Regions, points_of, regions_of_frames
from .sockets import CATEGORY

SEGMENT, ALIKE, COUNT, DESCRIBE, NAME = QUESTIONS = ("segment", "find alike", "count", "describe", "name")
OVERLAP = 0.7  # two marks on like things would find each thing twice
DESCRIPTION_TOKENS, NAME_TOKENS = 64, 16


class VisionLLMRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMRegion",
            display_name="VisionLLM Region",
            category=CATEGORY,
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
            hidden=[io.Hidden.unique_id],
            inputs=[
                model_input(),
                image_input(),
                io.Combo.Input(
                    "question",
                    options=list(QUESTIONS),
                    default=SEGMENT,
                    tooltip="segment: the object under each region. find alike: every similar object, the marked ones "
                    "included. count: the same, counted. describe: one sentence per region. name: one or two "
                    "words per region.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Regions as masks. With a single image, each mask is a region. With a batch, one mask per "
                    "image or one for all. Masks of another size are stretched to the image.",
                ),
                io.BoundingBox.Input(
                    "bboxes",
                    optional=True,
                    force_input=True,
                    tooltip="Regions as bounding boxes in pixels: one box, a list, or a list per image.",
                ),
                io.String.Input(
                    "points",
                    default="",
                    optional=True,
                    tooltip='Regions as points in pixels: [{"x": 12, "y": 34}]. Each point is one region, the same in '
                    "every image.",
                ),
                threshold_input(0.3, "find alike and count: drops detections below this score."),
                top_k_input(MAX_DETECTIONS, "find alike and count: maximum detections per image, best first."),
                json_masks_input(),
            ],
            outputs=[
                *found_outputs(
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
        """A connected input is None here, one that is not there keeps its "". `question` is always there: without an input nothing is checked."""
        if question not in (*QUESTIONS, None):
            return f"question: {question!r} is none of {', '.join(QUESTIONS)}"
        if mask == bboxes == "" and points is not None and not points.strip():
            return "mask, bboxes, points: none of them marks a region. Connect a mask or boxes, or write points."
        return valid(points_of, points)

    @classmethod
    def execute(
        cls, visionllm, image, question, threshold, top_k, mask=None, bboxes=None, points="", masks_in_json=False
    ) -> io.NodeOutput:
        marked = regions_of_frames(len(image), tuple(image.shape[1:3]), visionllm.settings.tower, mask, bboxes, points)
        if not any(map(len, marked)):
            raise ValueError("mask, bboxes, points: none of them marks a region in any picture.")
        limits = Limits(top_k, threshold, overlap=OVERLAP, across_names=True)
        found = each(list(zip(image, marked)), lambda asked: _ask(visionllm, *asked, question, limits))
        texts = ["\n".join(one.names) if question in (DESCRIBE, NAME) else summary(one) for one in found]
        values = values_of(question, question, found, masks_in_json, texts)
        text = "\n\n".join(texts)
        return io.NodeOutput(*values, text, ui=show(cls, text, values[-1]))


def _ask(visionllm, picture, marked: Regions, question: str, limits: Limits) -> Detections:
    if not len(marked):
        return nothing(marked.size)
    if question == SEGMENT:
        return detect_at_regions(visionllm, picture, marked.marks)
    if question in (ALIKE, COUNT):
        return detect_similar(visionllm, picture, marked.marks, limits)
    return marked.as_found(_words(visionllm, picture, question, marked))


def _words(visionllm, picture, question: str, marked: Regions) -> Sequence[str]:
    """A text for each region; the model takes one region at a time."""
    turn, max_tokens = (
        (prompt_templates.region_caption(), DESCRIPTION_TOKENS)
        if question == DESCRIBE
        else (prompt_templates.region_category(), NAME_TOKENS)
    )
    replies = [
        answer(visionllm, [picture], [[turn]], marks=mark[None], max_tokens=max_tokens)[0] for mark in marked.marks
    ]
    return [" ".join(reply.plain_text.split()) for reply in replies]
