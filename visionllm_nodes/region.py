"""VisionLLM Region: questions about places that a mask, boxes or points show."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

from ..nodes.common import show, valid
from .detections.results import Detection, nothing
from .model import prompt_templates
from .model.answers import answer
from .model.perception import find_alike, find_regions
from .model.selection import THINGS, Limits
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
            description="Point at something with a mask, boxes or points: get its exact outline, everything like it, how many there are, or what it "
            "is in words.",
            search_aliases=[
                "visual prompt",
                "segment by point",
                "segment by box",
                "mask to description",
                "region caption",
                "count similar",
                "find ",
                "similar",
                "sam",
                "t-rex",
                "区域描述",
                "以图找物",
                "計数",
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
                    tooltip="segment: the thing that each region lies on. find alike and count: everything like them, the marked things "
                    "too. describe: a sentence about each region. name: a word or two.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Of one picture each mask is a region, of any size: it is stretched over the picture. Of several pictures one "
                    "region each, or one mask for all.",
                ),
                io.BoundingBox.Input(
                    "bboxes",
                    optional=True,
                    force_input=True,
                    tooltip="Each box is a region: one, a list, or a list for each picture, in pixels.",
                ),
                io.String.Input(
                    "points",
                    default="",
                    optional=True,
                    tooltip='Each point is a region: [{"x": 12, "y": 34}], in pixels. The same in every picture.',
                ),
                threshold_input(0.3, "find alike and count: things with a lower score do not count."),
                top_k_input(THINGS, "things (find alike and count)"),
                json_masks_input(),
            ],
            outputs=[
                *found_outputs(
                    "Of each picture its boxes in pixels, with label and score. segment: one for each region, in their order. find alike "
                    "and count: the best first. describe and name: the regions' own, with the words as their labels."
                ),
                io.String.Output(
                    display_name="text",
                    tooltip="describe and name: the words, a line for each region. Else what was found, in short.",
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


def _ask(visionllm, picture, marked: Regions, question: str, limits: Limits) -> Detection:
    if not len(marked):
        return nothing(marked.size)
    if question == SEGMENT:
        return find_regions(visionllm, picture, marked.marks)
    if question in (ALIKE, COUNT):
        return find_alike(visionllm, picture, marked.marks, limits)
    return marked.as_found(_words(visionllm, picture, question, marked))


def _words(visionllm, picture, question: str, marked: Regions) -> Sequence[str]:
    """A text for each region; the model takes one region at a time."""
    turn, limit = (
        (prompt_templates.region_caption(), DESCRIPTION_TOKENS)
        if question == DESCRIBE
        else (prompt_templates.region_category(), NAME_TOKENS)
    )
    replies = [answer(visionllm, [picture], [[turn]], marks=mark[None], limit=limit)[0] for mark in marked.marks]
    return [" ".join(reply.spoken.split()) for reply in replies]
