r"""What a prompt's brackets, BREAK and `embedding:` say: parts of plain text, each in segments of one weight.

Brackets as in ComfyUI: `(words:1.2)` weighs 1.2, `(words)` 1.1 times what stands around it, `\(` is a bracket. Two
deviations, both for prompts that are broken there: an unpaired bracket is text and changes nothing else, and a weight
that is not a finite number is text. The time is linear in the prompt's length, however deep brackets are nested.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

BRACKET_WEIGHT = 1.1
MAX_WEIGHT = 100.0  # a thousand nested brackets would overflow float32

_BRACKET = re.compile(r"\\[()]|[()]")
_BREAK = re.compile(r"(?<![\w\\])BREAK(?!\w)")
_ESCAPED = re.compile(r"\\([()]|BREAK(?!\w))")
_EMBEDDING = re.compile(r"(?<![^\s(,])embedding:[^\s,:()]+")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Segment(NamedTuple):
    """Text of one weight."""

    text: str
    weight: float


@dataclass
class Notes:
    """What could not be read as it was written."""

    inversions: list[str] = field(default_factory=list)  # taken out of the text
    lone_brackets: int = 0  # read as text
    limited_weights: int = 0  # segments whose weight was brought down to LARGEST_WEIGHT
    surrogates: int = 0  # halves of characters, replaced by U+FFFD


@dataclass(frozen=True)
class Prompt:
    """A prompt's parts in order, each beginning a window of its own.

    There is always one; an empty prompt's has no segments.
    """

    parts: list[list[Segment]]
    notes: Notes


def plain_prompt(text: str) -> Prompt:
    """Read the prompt as it is, all of weight 1."""
    notes = Notes()
    return Prompt([_non_empty([Segment(_whole_characters(text, notes), 1.0)])], notes)


def parse_prompt(text: str) -> Prompt:
    """Read the prompt with its weights and breaks. Never raises; what cannot be read as written is logged and noted."""
    notes = Notes()
    text = _whole_characters(text, notes)
    parts: list[list[Segment]] = [[]]
    for segment in _weighted(text, notes):
        first, *others = _BREAK.split(_without_inversions(segment.text, notes))
        parts[-1].append(Segment(first, segment.weight))
        parts += [[Segment(other, segment.weight)] for other in others]
    if len(parts) > 1:
        last = len(parts) - 1
        parts = [_stripped(part, left=index > 0, right=index < last) for index, part in enumerate(parts)]
        parts = [part for part in parts if any(segment.text.strip() for segment in part)] or [[]]
    if notes.inversions:
        logging.warning(
            "MuLan: ignored textual inversions, which are made for CLIP and mean nothing to InternVL: %s",
            ", ".join(notes.inversions),
        )
    if notes.limited_weights:
        logging.warning("MuLan: the prompt has weights beyond %g, which are limited to it", MAX_WEIGHT)
    return Prompt(
        [_non_empty([Segment(_ESCAPED.sub(r"\1", text), weight) for text, weight in part]) for part in parts], notes
    )


def _whole_characters(text: str, notes: Notes) -> str:
    """Replace pairs of surrogates by their character, lone ones by U+FFFD: neither has an encoding in UTF-8."""
    if not _SURROGATE.search(text):
        return text
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")  # joins the pairs
    text, notes.surrogates = _SURROGATE.subn("\ufffd", text)
    if notes.surrogates:
        logging.warning(
            "MuLan: replaced %d halves of characters (lone surrogates) in the prompt by U+FFFD", notes.surrogates
        )
    return text


def _weighted(text: str, notes: Notes) -> list[Segment]:
    """Split the text at paired brackets, with the weights of the groups they make. Escapes stay."""
    groups = _groups(text, notes)
    segments, weights, begin = [], [1.0], 0

    def emit(end: int) -> None:
        weight = max(-MAX_WEIGHT, min(MAX_WEIGHT, weights[-1]))
        notes.limited_weights += weight != weights[-1] and begin < end
        segments.append(Segment(text[begin:end], weight))

    for position, (given, end) in sorted(groups.items()):
        emit(end)
        if text[position] == "(":
            weights.append(weights[-1] * BRACKET_WEIGHT if given is None else given)
        else:
            weights.pop()
        begin = position + 1
    emit(len(text))
    return segments


def _groups(text: str, notes: Notes) -> dict[int, tuple[float | None, int]]:
    """Return position of each paired bracket -> (the weight its group names, where the text before the bracket "
    "ends).
    """
    groups, open_brackets, behind_bracket = {}, [], 0
    for match in _BRACKET.finditer(text):
        position = match.start()
        if match[0] == "(":
            open_brackets.append(position)
        elif match[0] == ")" and open_brackets:
            opened = open_brackets.pop()
            given, end = _named_weight(text, max(behind_bracket, opened + 2), position)
            groups[opened] = given, opened
            groups[position] = None, end
        elif match[0] == ")":
            notes.lone_brackets += 1
        behind_bracket = match.end()
    notes.lone_brackets += len(open_brackets)
    return groups


def _named_weight(text: str, begin: int, end: int) -> tuple[float | None, int]:
    """Return (weight, position of its colon) of a group that closes at `end`, its last bracket before `begin`.

    (None, end) where the group names no weight.
    """
    colon = text.rfind(":", begin, end)
    try:
        weight = float(text[colon + 1 : end]) if colon >= 0 else math.nan
    except ValueError:
        weight = math.nan
    return (weight, colon) if math.isfinite(weight) else (None, end)


def _without_inversions(text: str, notes: Notes) -> str:
    if "embedding:" not in text:
        return text
    notes.inversions += _EMBEDDING.findall(text)
    return _EMBEDDING.sub("", text)


def _stripped(part: list[Segment], left: bool, right: bool) -> list[Segment]:
    """Strip the spaces at the ends that touch a BREAK."""
    part = [segment for segment in part if segment.text]
    while left and part:
        part[0] = Segment(part[0].text.lstrip(), part[0].weight)
        if part[0].text:
            break
        part = part[1:]
    while right and part:
        part[-1] = Segment(part[-1].text.rstrip(), part[-1].weight)
        if part[-1].text:
            break
        part = part[:-1]
    return part


def _non_empty(segments: list[Segment]) -> list[Segment]:
    return [segment for segment in segments if segment.text]
