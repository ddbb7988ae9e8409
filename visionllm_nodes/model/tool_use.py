"""A free instruction: the model answers in words, and where it generates a tool token that tool's decoder runs.

Source: the paper's section 3.2: which decoder runs is the language model's own choice. Upstream's code runs it by the
task that a file of questions names; its forward shows which tokens a decoder takes together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..detections.results import Detections, Keypoints, concatenate, sort_order
from . import decoding
from .answers import MAX_TOKENS, Reply, answer
from .contexts import map_queries
from .generation import Sampler, greedy
from .image_inputs import ImageLike
from .prefill import ImageView, load_weights
from .prompt_templates import chat
from .selection import Limits
from .special_tokens import DETECT, EDIT, GENERATE, GROUND, POSE, SEGMENT
from .visionllm_loader import LoadedVisionLLM

ONE = Limits(max_detections=1)
NO_LIMITS = Limits()
NEEDS = {
    DETECT: "grounding",
    GROUND: "grounding",
    SEGMENT: "grounding",
    POSE: "pose",
    GENERATE: "generate",
    EDIT: "edit",
}  # tool -> part
UNNAMED = "object"
_ARTICLES = re.compile(r"^(?:(?:and|the|a|an)\s+)+", re.IGNORECASE)
_LAST_CLAUSE = re.compile(r"[,;:.?!，、。：；]|\b(?:for|are|is|of|and|see)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Instruction:
    """The answer and its tools' results; None where the answer has none of a kind.

    detections: of [DET], [GRD] and [SEG]. keypoints: of [POSE]. generate, edit: contexts float32 [1, 77, 768] of [GEN]
    and [EDIT]. notes: which tools could not run, and why.
    """

    reply: Reply
    detections: Detections | None = None
    keypoints: Keypoints | None = None
    generate: torch.Tensor | None = None
    edit: torch.Tensor | None = None
    notes: tuple[str, ...] = ()


@torch.no_grad()
def instruct(
    loaded: LoadedVisionLLM,
    image: ImageLike | None,
    sentence: str,
    *,
    history: Sequence[tuple[str, str]] = (),
    limits: Limits = NO_LIMITS,
    max_tokens: int = MAX_TOKENS,
    sampler: Sampler = greedy,
    on_text: Callable[[list[str]], None] | None = None,
) -> Instruction:
    """Answer the sentence, and run the tools that the answer calls; `limits` are for what [DET] detects.

    All [DET] of an answer are one list of names, unless there are [POSE]: then they name the objects whose keypoints
    these are.
    """
    (reply,) = answer(
        loaded,
        [] if image is None else [image],
        [chat(sentence, history, image is not None)],
        max_tokens=max_tokens,
        sampler=sampler,
        on_text=on_text,
    )
    return run_tools(loaded, image, sentence, reply, limits)


@torch.no_grad()
def run_tools(
    loaded: LoadedVisionLLM, image: ImageLike | None, sentence: str, reply: Reply, limits: Limits = NO_LIMITS
) -> Instruction:
    """Run the decoders that an answer to `sentence` calls."""
    notes, called = [], {}
    for call, name in zip(reply.tools, labels(reply, sentence), strict=True):
        reason = _obstacle(loaded, image, call.tool)
        if reason:
            notes.append(f"{call.tool} was not run: {reason}")
        else:
            called.setdefault(call.tool, []).append((name, call.hidden_states))
    asked = {
        tool: ([name for name, _ in calls], torch.stack([queries for _, queries in calls]))
        for tool, calls in called.items()
    }
    keypoints = None
    if POSE in asked:
        objects = asked.pop(DETECT, None)
        points = asked.pop(POSE)
        if objects is None:
            notes.append(f"{POSE} was not run: the answer names no object whose keypoints these are")
        else:
            keypoints = _pose(loaded, _view(loaded, image), objects, points, limits)
    detections = None
    if asked.keys() & {DETECT, GROUND, SEGMENT}:
        detections = _detect(loaded, _view(loaded, image), asked, limits)
    contexts = {NEEDS[tool]: _context(loaded, tool, asked[tool][1][-1]) for tool in (GENERATE, EDIT) if tool in asked}
    return Instruction(reply, detections, keypoints, notes=tuple(dict.fromkeys(notes)), **contexts)


def labels(reply: Reply, sentence: str) -> list[str]:
    """Return what each tool of an answer is about, in the words before it; [GRD] is about the sentence."""
    return [
        _marked_phrase(lead) or (sentence.strip() if call.tool == GROUND else _name_of_lead(lead, sentence))
        for call, lead in zip(reply.tools, reply.lead_texts, strict=True)
    ]


def _marked_phrase(lead: str) -> str:
    """Return the phrase that the model put between <det> and </det>."""
    match = re.search(r"<det>([^<]+)</det>\W*$", lead)
    return match[1].strip() if match else ""


def _name_of_lead(lead: str, sentence: str) -> str:
    """Return the longest end of the lead that the sentence has too, else the lead's last clause."""
    words = re.sub(r"<[^<>]*>", " ", lead).strip().rstrip(",;:.，、：\"'` ")
    asked = sentence.lower()
    for start in range(len(words)):
        if start and _continues(words[start - 1], words[start]):
            continue
        name = _ARTICLES.sub("", words[start:].strip(" ,;:.，、：\"'`"))
        if name and _contains_words(asked, name.lower()):
            return name
    return _ARTICLES.sub("", _LAST_CLAUSE.split(words)[-1].strip(" \"'`")) or UNNAMED


def _contains_words(asked: str, name: str) -> bool:
    """Whether the name stands in the text as whole words; scripts without spaces have no edges of words."""
    at = asked.find(name)
    while at >= 0:
        end = at + len(name)
        if not (at and _continues(asked[at - 1], name[0])) and not (
            end < len(asked) and _continues(name[-1], asked[end])
        ):
            return True
        at = asked.find(name, at + 1)
    return False


def _continues(letter: str, following: str) -> bool:
    """Whether the two letters belong to one word."""
    return all(char.isalnum() and char < "\u0e00" or "\uac00" <= char <= "\ud7a3" for char in (letter, following))


def _obstacle(loaded: LoadedVisionLLM, image: ImageLike | None, tool: str) -> str | None:
    if tool != GENERATE and image is None:
        return "no image is connected"
    part = NEEDS[tool]
    if getattr(loaded.model, part) is None:
        return f"{loaded.name} has no part for it ({part})"
    return None


def _detect(loaded: LoadedVisionLLM, view: ImageView, asked: dict, limits: Limits) -> Detections:
    """Return what [DET], [GRD] and [SEG] ask for as one record, in the order of results."""
    results = []
    canvas = decoding.grounding_canvas(loaded, view)
    load_weights(loaded, [], 0, canvas.memory)
    if DETECT in asked:
        names, queries = asked[DETECT]
        results.append(decoding.detect(loaded, canvas, queries, names, limits))
    for name, queries in zip(*asked.get(GROUND, ((), ())), strict=True):
        results.append(decoding.detect(loaded, canvas, queries[None], [name], ONE))
    if SEGMENT in asked:
        names, queries = asked[SEGMENT]
        wide = decoding.grounding_canvas(loaded, view, semantic=True)
        load_weights(loaded, [], 0, wide.memory)
        results.append(decoding.segment_pixels(loaded, wide, queries, names).to_detections())
    names = tuple(name for part in results for name in part.names)
    first, parts = 0, []
    for part in results:
        parts.append(replace(part, names=names, labels=part.labels + first))
        first += len(part.names)
    detections = concatenate(parts)
    return detections.select(sort_order(detections.scores, detections.boxes))


def _view(loaded: LoadedVisionLLM, image: ImageLike | None) -> ImageView:
    if image is None:  # `_obstacle` keeps such tools from running
        raise ValueError("no image is connected")
    return ImageView(loaded, image)


def _pose(loaded: LoadedVisionLLM, view: ImageView, objects: tuple, points: tuple, limits: Limits) -> Keypoints:
    canvas = decoding.pose_canvas(loaded, view)
    load_weights(loaded, [], 0, canvas.memory)
    return decoding.detect_keypoints(loaded, canvas, torch.cat((objects[1], points[1])), objects[0], points[0], limits)


def _context(loaded: LoadedVisionLLM, tool: str, queries: torch.Tensor) -> torch.Tensor:
    """Return the context float32 [1, 77, 768] of a tool's last call: a sentence is one image."""
    load_weights(loaded, [], 0)
    return map_queries(loaded, getattr(loaded.model, NEEDS[tool]), queries[None])
