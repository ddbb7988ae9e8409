r"""What a prompt's brackets, BREAK and `embedding:` say: parts of plain text, each in segments of one weight.

Brackets as in ComfyUI: `(words:1.2)` weighs 1.2, `(words)` 1.1 times what stands around it, `\(` is a bracket. Two
deviations, both for prompts that are broken there: an unpaired bracket is text and changes nothing else, and a weight
that is not a finite number is text. Full-width brackets and colons are text, as there: Chinese and Japanese sentences
have them, "（比例1：2）". The time is linear in the prompt's length, however deep brackets are nested.
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..boundary.interrupts import interruptible
from ..boundary.texts import is_blank, is_foreign_punctuation, whole_characters
from ..images.unicode_text import WITHOUT_SPACES, is_mark, script

BRACKET_WEIGHT = 1.1
MAX_WEIGHT = 100.0  # a thousand nested brackets would overflow float32

_BRACKET = re.compile(r"\\[()]|[()]")
_BREAK = re.compile(r"(?<![\w\\])BREAK(?!\w)")
_ESCAPED = re.compile(r"\\([()]|BREAK(?!\w))")
_EMBEDDING = "embedding:"
# Around `embedding:name`, beside white space and all punctuation outside ASCII. Names have dots and hyphens.
_SEPARATORS = frozenset(',;:()[]{}<>|"\u200b')
# At the ends the zero-width space and the word joiner are white space too; inside a text they say something.
_OUTER_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u2060"
_ODD_SPACE = re.compile(r"\s{2,}|[^\S ]")  # anything but a single space


class Segment(NamedTuple):
    """Text of one weight."""

    text: str
    weight: float


@dataclass
class Notes:
    """What could not be read as it was written."""

    inversions: list[str] = field(default_factory=list)  # taken out of the text
    lone_brackets: int = 0  # read as text
    limited_weights: int = 0  # segments whose weight was brought down to MAX_WEIGHT
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
    text = _whole_characters(text, notes)
    return Prompt([[Segment(text, 1.0)] if text else []], notes)


def with_plain_spaces(prompt: Prompt) -> Prompt:
    """Return the prompt with one space for any run of white space, and none at the ends of a part.

    White space is Unicode's, line breaks with it. Between characters of scripts that are written without spaces only a
    space that was typed as such stays. A part in which nothing can be seen goes.
    """
    parts = [spaced for part in interruptible(prompt.parts) if (spaced := _plainly_spaced(part))]
    return Prompt(parts or [[]], prompt.notes)


def parse_prompt(text: str) -> Prompt:
    """Read the prompt with its weights and breaks. Never raises; what cannot be read as written is logged and noted."""
    notes = Notes()
    text = _whole_characters(text, notes)
    parts: list[list[Segment]] = [[]]
    for segment in interruptible(_weighted(text, notes)):
        first, *others = _BREAK.split(_without_inversions(segment.text, notes))
        parts[-1].append(Segment(first, segment.weight))
        parts += [[Segment(other, segment.weight)] for other in others]
    if notes.inversions:
        logging.warning(
            "MuLan: ignored textual inversions, which are made for CLIP and mean nothing to InternVL: %s",
            quoted(notes.inversions),
        )
    if notes.limited_weights:
        logging.warning("MuLan: the prompt has weights beyond %g, which are limited to it", MAX_WEIGHT)
    return Prompt([_unescaped(part) for part in interruptible(parts)], notes)


def _whole_characters(text: str, notes: Notes) -> str:
    text, notes.surrogates = whole_characters(text)
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

    for position, (given, end) in interruptible(sorted(groups.items())):
        emit(end)
        if text[position] == "(":
            weights.append(weights[-1] * BRACKET_WEIGHT if given is None else given)
        else:
            weights.pop()
        begin = position + 1
    emit(len(text))
    return segments


def _groups(text: str, notes: Notes) -> dict[int, tuple[float | None, int]]:
    """Return position of each paired bracket -> (the weight its group names, where the text before it ends)."""
    groups, open_brackets, behind_bracket = {}, [], 0
    for match in interruptible(_BRACKET.finditer(text)):
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
    """Take out every `embedding:name` that stands between separators or the text's ends."""
    kept, behind, start = [], 0, text.find(_EMBEDDING)
    while start >= 0:
        name = end = start + len(_EMBEDDING)
        if start == 0 or _separates(text[start - 1]):
            while end < len(text) and not _separates(text[end]):
                end += 1
        if end > name:
            notes.inversions.append(text[start:end])
            kept.append(text[behind:start])
            behind = end
        start = text.find(_EMBEDDING, end)
    return "".join([*kept, text[behind:]])


def _separates(character: str) -> bool:
    return character.isspace() or character in _SEPARATORS or is_foreign_punctuation(character)


def _plainly_spaced(part: list[Segment]) -> list[Segment]:
    text = "".join(segment.text for segment in part)
    if is_blank(text):
        return []
    begin, end = len(text) - len(text.lstrip(_OUTER_SPACE)), len(text.rstrip(_OUTER_SPACE))
    spaced, offset = [], 0
    for segment in interruptible(part):
        first, last = max(offset, begin), min(offset + len(segment.text), end)
        offset += len(segment.text)
        while begin < first < last and text[first].isspace() and text[first - 1].isspace():
            first += 1
        kept = []
        for run in interruptible(_ODD_SPACE.finditer(text, first, last)):
            kept += text[first : run.start()], _plain_space(text, run)
            first = run.end()
        if whole := "".join([*kept, text[first:last]]):
            spaced.append(Segment(whole, segment.weight))
    return spaced


def _plain_space(text: str, run: re.Match) -> str:
    """Return what a run of white space inside the text is: a space, or nothing between scripts without spaces."""
    typed = run[0].strip(" ") == ""
    return " " if typed or not all(map(_needs_no_space, (text[run.start() - 1], text[run.end()]))) else ""


def _needs_no_space(character: str) -> bool:
    """Return whether a line may end beside a character without a space being meant, as in Chinese or Thai."""
    if is_foreign_punctuation(character):
        return unicodedata.east_asian_width(character) in ("W", "F")
    if is_mark(character):  # such as a vowel sign of Thai or Burmese
        return unicodedata.name(character, "").partition(" ")[0].title() in WITHOUT_SPACES
    return script(character) in WITHOUT_SPACES


def quoted(names: Sequence[str], limit: int = 8) -> str:
    """Return the first names, shortened, for a person to read."""
    shown = ", ".join(name if len(name) <= 60 else name[:59] + "…" for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _unescaped(part: list[Segment]) -> list[Segment]:
    return [Segment(_ESCAPED.sub(r"\1", text), weight) for text, weight in interruptible(part) if text]
