"""A free sentence: the model answers in words, and where it writes a tool token that tool's decoder runs.

Source: the paper's section 3.2: which decoder runs is the language model's own choice. Upstream's code runs it by the task that a file of
questions names; its forward shows which tokens a decoder takes together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import comfy.model_management
import torch

from ..detections.results import Detection, Keypoints, in_order, joined
from . import decoding
from .answers import LIMIT, Reply, answer
from .generation import Choose, greedy
from .image_inputs import Picture
from .prefill import View, prepare
from .prompt_templates import chat
from .selection import Limits
from .special_tokens import DETECT, EDIT, GENERATE, GROUND, POSE, SEGMENT
from .visionllm_loader import LoadedVisionLLM

ONE = Limits(count=1)
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
    """The answer and what its tools made: `found` for [DET], [GRD] and [SEG], `posed` for [POSE], contexts [1, 77, 768] for [GEN] and [EDIT].

    None where the answer has none of a kind. `notes` say which tools could not run, and why.
    """

    reply: Reply
    found: Detection | None = None
    posed: Keypoints | None = None
    generate: torch.Tensor | None = None
    edit: torch.Tensor | None = None
    notes: tuple[str, ...] = ()


@torch.no_grad()
def instruct(
    loaded: LoadedVisionLLM,
    picture: Picture | None,
    sentence: str,
    *,
    history: Sequence[tuple[str, str]] = (),
    limits: Limits = Limits(),
    limit: int = LIMIT,
    choose: Choose = greedy,
    on_text: Callable[[list[str]], None] | None = None,
) -> Instruction:
    """Has the sentence answered in at most `limit` tokens, and runs what the answer calls; `limits` are for what [DET] finds.

    All [DET] of an answer are one list of names, unless there are [POSE]: then they name the objects whose keypoints these are.
    """
    (reply,) = answer(
        loaded,
        [] if picture is None else [picture],
        [chat(sentence, history, picture is not None)],
        limit=limit,
        choose=choose,
        on_text=on_text,
    )
    return run_tools(loaded, picture, sentence, reply, limits)


@torch.no_grad()
def run_tools(
    loaded: LoadedVisionLLM, picture: Picture | None, sentence: str, reply: Reply, limits: Limits = Limits()
) -> Instruction:
    """Runs the decoders that an answer to `sentence` calls."""
    notes, called = [], {}
    for call, name in zip(reply.tools, labels(reply, sentence)):
        reason = _hindrance(loaded, picture, call.tool)
        if reason:
            notes.append(f"{call.tool} was not run: {reason}")
        else:
            called.setdefault(call.tool, []).append((name, call.states))
    asked = {
        tool: ([name for name, _ in calls], torch.stack([states for _, states in calls]))
        for tool, calls in called.items()
    }
    posed = None
    if POSE in asked:
        objects = asked.pop(DETECT, None)
        points = asked.pop(POSE)
        if objects is None:
            notes.append(f"{POSE} was not run: the answer names no object whose keypoints these are")
        else:
            posed = _pose(loaded, View(loaded, picture), objects, points, limits)
    found = _find(loaded, View(loaded, picture), asked, limits) if asked.keys() & {DETECT, GROUND, SEGMENT} else None
    contexts = {NEEDS[tool]: _context(loaded, tool, asked[tool][1][-1]) for tool in (GENERATE, EDIT) if tool in asked}
    return Instruction(reply, found, posed, notes=tuple(dict.fromkeys(notes)), **contexts)


def labels(reply: Reply, sentence: str) -> list[str]:
    """What each tool of an answer is about, in the words before it; [GRD] is about the sentence."""
    return [
        _marked(lead) or (sentence.strip() if call.tool == GROUND else _named(lead, sentence))
        for call, lead in zip(reply.tools, reply.leads)
    ]


def _marked(lead: str) -> str:
    """A phrase that the model put between <det> and </det>."""
    found = re.search(r"<det>([^<]+)</det>\W*$", lead)
    return found[1].strip() if found else ""


def _named(lead: str, sentence: str) -> str:
    """The longest end of the lead that the sentence has too, else the lead's last clause."""
    words = re.sub(r"<[^<>]*>", " ", lead).strip().rstrip(",;:.，、：\"'` ")
    asked = sentence.lower()
    for start in range(len(words)):
        if start and _continues(words[start - 1], words[start]):
            continue
        name = _ARTICLES.sub("", words[start:].strip(" ,;:.，、：\"'`"))
        if name and _stands_in(name.lower(), asked):
            return name
    return _ARTICLES.sub("", _LAST_CLAUSE.split(words)[-1].strip(" \"'`")) or UNNAMED


def _stands_in(name: str, asked: str) -> bool:
    """As whole words; scripts without spaces have no word's edge."""
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
    """Whether the two stand in one word."""
    return all(char.isalnum() and char < "\u0e00" or "\uac00" <= char <= "\ud7a3" for char in (letter, following))


def _hindrance(loaded: LoadedVisionLLM, picture: Picture | None, tool: str) -> str | None:
    if tool != GENERATE and picture is None:
        return "no picture is connected"
    part = NEEDS[tool]
    if getattr(loaded.model, part) is None:
        return f"{loaded.name} has no part for it ({part})"
    return None


def _find(loaded: LoadedVisionLLM, view: View, asked: dict, limits: Limits) -> Detection:
    """What [DET], [GRD] and [SEG] ask for as one record, in the order of results."""
    found = []
    canvas = decoding.grounding_canvas(loaded, view)
    prepare(loaded, [], 0, canvas.pixels)
    if DETECT in asked:
        names, states = asked[DETECT]
        found.append(decoding.things(loaded, canvas, states, names, limits))
    for name, states in zip(*asked.get(GROUND, ((), ()))):
        found.append(decoding.things(loaded, canvas, states[None], [name], ONE))
    if SEGMENT in asked:
        names, states = asked[SEGMENT]
        wide = decoding.grounding_canvas(loaded, view, semantic=True)
        prepare(loaded, [], 0, wide.pixels)
        found.append(decoding.name_of_each_pixel(loaded, wide, states, names).areas())
    names = tuple(name for part in found for name in part.names)
    first, parts = 0, []
    for part in found:
        parts.append(replace(part, names=names, labels=part.labels + first))
        first += len(part.names)
    together = joined(parts)
    return together.select(in_order(together.scores, together.boxes))


def _pose(loaded: LoadedVisionLLM, view: View, objects: tuple, points: tuple, limits: Limits) -> Keypoints:
    canvas = decoding.pose_canvas(loaded, view)
    prepare(loaded, [], 0, canvas.pixels)
    return decoding.keypoints(loaded, canvas, torch.cat((objects[1], points[1])), objects[0], points[0], limits)


def _context(loaded: LoadedVisionLLM, tool: str, states: torch.Tensor) -> torch.Tensor:
    """float32 [1, 77, 768]; the last call counts, since a sentence is one picture."""
    prepare(loaded, [], 0)
    return getattr(loaded.model, NEEDS[tool])(states[None]).float().to(comfy.model_management.intermediate_device())
