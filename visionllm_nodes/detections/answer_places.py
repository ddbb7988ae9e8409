"""Boxes and points that were read in a model's answer, as numbers of the answer's own unit, and what could not be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...mulan.boundary.limits import MAX_ANSWER_PLACES, MAX_NAME_LENGTH, MAX_POSITION

PERCENT, THOUSAND = 100.0, 1000.0
CUT_OFF = "it breaks off"
SHOWN = 60  # characters of the answer in a report

Span = tuple[int, int]


@dataclass(frozen=True)
class Form:
    """What is known about numbers before they are read: from the tag, key or words in front of them.

    whole: the number of an image's far edge, None where the form does not say. y_first: each pair is y, x. expected:
    they are coordinates, whatever they look like. box: two pairs are corners.
    """

    label: str = ""
    score: float | None = None
    whole: float | None = None
    y_first: bool = False
    expected: bool = False
    box: bool = False


@dataclass(frozen=True)
class AnswerPlace:
    """A box (four numbers: two corners) or a point (two), as they are written, and where: `text`.

    named: x and y have their names. settled: unit and order are those of the form, whatever a person chooses.
    """

    numbers: tuple[float, ...]
    form: Form
    text: str
    named: bool = False
    settled: bool = False


@dataclass
class Answer:
    """What was read in one text; `problems` are what was not, a line each."""

    text: str
    places: list[AnswerPlace] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    repeated: int = 0
    full: bool = False
    _seen: set[tuple] = field(default_factory=set)

    def add(
        self, numbers: Sequence[float], span: Span, form: Form, *, named: bool = False, settled: bool = False
    ) -> None:
        """Add a box or a point. Other counts of numbers, and numbers that no image has, are problems."""
        if len(numbers) not in (2, 4):
            plural = "" if len(numbers) == 1 else "s"
            return self.problem(f"{len(numbers)} number{plural}, but a box has 4 and a point 2", span)
        if not all(math.isfinite(one) and abs(one) <= MAX_POSITION for one in numbers):
            return self.problem(f"a number above {MAX_POSITION}", span)
        key = (*numbers, form.label, form.whole, form.y_first)
        if key in self._seen:
            self.repeated += 1
        elif len(self.places) >= MAX_ANSWER_PLACES:
            self.full = True
        else:
            self._seen.add(key)
            form = Form(form.label.strip()[:MAX_NAME_LENGTH], form.score, form.whole, form.y_first)
            self.places.append(AnswerPlace(tuple(numbers), form, self.shown(span), named, settled))
        return None

    def problem(self, why: str, span: Span) -> None:
        """Say what cannot be read."""
        if len(self.problems) < MAX_ANSWER_PLACES:
            self.problems.append(f"not read, {why}: {self.shown(span)}")

    def shown(self, span: Span) -> str:
        """Return what stands there, in one short line."""
        line = " ".join(self.text[span[0] : min(span[1], span[0] + 4 * SHOWN)].split())
        return line if len(line) <= SHOWN else line[:SHOWN] + "..."
