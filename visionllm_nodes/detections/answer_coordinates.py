"""From numbers in a model's answer to pixels: which unit they have, which of a pair is x, and what reaches over the
edges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...mulan.boundary.interrupts import interruptible
from .answer_places import PERCENT, THOUSAND, Answer, AnswerPlace
from .bounding_boxes import bounding_box

AUTO, PIXELS = "auto", "pixels"
FRACTION, PERCENTS, THOUSANDTHS = "0-1", "0-100", "0-1000"
UNITS = {FRACTION: 1.0, PERCENTS: PERCENT, THOUSANDTHS: THOUSAND}  # the number of an image's far edge
COORDINATES = (AUTO, *UNITS, PIXELS)
LOCATIONS = "location tokens"
X_FIRST, Y_FIRST = "x first", "y first"
ORDERS = (AUTO, X_FIRST, Y_FIRST)
MAX_LINES = 20  # of a report, about one image
FRACTIONS = 1.5  # numbers below it are fractions of the image, where one has decimals
CHOOSE = "If the boxes are wrong, choose coordinates"

Size = tuple[int, int]


@dataclass
class ImagePlaces:
    """What an answer says about one image: boxes as BOUNDING_BOX, points as objects of KEYPOINTS, and a report."""

    size: Size
    boxes: list[dict] = field(default_factory=list)
    points: list[dict] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)

    @property
    def keypoints(self) -> dict:
        """KEYPOINTS of this image: each point is an object of its own."""
        return {"width": self.size[1], "height": self.size[0], "skeleton": [], "objects": self.points}

    def summary(self) -> str:
        """Return the number of boxes and points per name and their units, then what was not read or changed."""
        counts = Counter(
            (one.get("label") or kind, kind)
            for kind, found in (("box", self.boxes), ("point", self.points))
            for one in found
        )
        head = ", ".join(f"{name}: {count}" for (name, _), count in counts.items()) or "no boxes or points"
        head += f" ({', '.join(dict.fromkeys(self.units))})" if counts else ""
        kept = self.lines[:MAX_LINES]
        more = len(self.lines) - len(kept)
        return "\n".join([head, *(f"- {line}" for line in kept), *([f"- and {more} more remarks"] if more else [])])


def locate(answers: Sequence[Answer], sizes: Sequence[Size], coordinates: str, order: str) -> list[ImagePlaces]:
    """Return boxes and points in pixels, for each answer about an image of `sizes` (height, width).

    coordinates: one of COORDINATES, order: one of ORDERS; with auto they are decided for each answer. Where the numbers
    of one answer fit several units, those of the others decide, if they agree; else thousandths are assumed, and said.
    """
    possible = [_possible(_open(answer), size, order) for answer, size in zip(answers, sizes, strict=True)]
    decided = {units[0] for units in possible if len(units) == 1 and units[0] != FRACTION}
    located = []
    for answer, size, units in zip(interruptible(answers), sizes, possible, strict=True):
        image = ImagePlaces(size, lines=list(answer.problems))
        if coordinates == AUTO and len(units) > 1:
            others = [unit for unit in units if decided == {unit}]
            image.lines.append(f"read as {others[0]}, like the other answers" if others else _undecided(units, size))
            units = others or units
        for place in interruptible(answer.places):
            unit = coordinates if coordinates != AUTO else _of_form(place, size, order) or units[0]
            _add(image, place, unit, order)
        if not answer.places and not answer.problems and answer.text.strip():
            image.lines.append(f"the text has no coordinates: {answer.shown((0, len(answer.text)))}")
        located.append(image)
    return located


def _open(answer: Answer) -> list[AnswerPlace]:
    """Return the places whose unit only their numbers tell."""
    return [place for place in answer.places if place.form.whole is None and not _is_fraction(place.numbers)]


def _is_fraction(numbers: Sequence[float]) -> bool:
    return max(map(abs, numbers)) <= FRACTIONS and any(number % 1 for number in numbers)


def _possible(places: Sequence[AnswerPlace], size: Size, order: str) -> list[str]:
    """Return the units that all of these can have, the likelier one first; none if there are no places."""
    if not places:
        return []
    sides = [_sides(place, order) for place in interruptible(places)]
    right, bottom = max(max(xs) for xs, _ in sides), max(max(ys) for _, ys in sides)
    if max(right, bottom) <= 1:
        return [FRACTION]
    fits = right <= size[1] and bottom <= size[0]
    if max(right, bottom) > THOUSAND:
        return [PIXELS] if fits else [PIXELS, THOUSANDTHS]
    return [THOUSANDTHS, PIXELS] if fits and size != (THOUSAND, THOUSAND) else [THOUSANDTHS]


def _undecided(units: Sequence[str], size: Size) -> str:
    if units[0] == PIXELS:
        return f"undecided: numbers above 1000 and outside the {size[1]} x {size[0]} image, read as pixels. {CHOOSE}"
    return f"undecided: the numbers can be 0-1000 or pixels, read as 0-1000. {CHOOSE}"


def _of_form(place: AnswerPlace, size: Size, order: str) -> str | None:
    """Return the unit of a form, None where it does not say. A form with numbers above its own has thousandths."""
    whole, highest = place.form.whole, max(place.numbers)
    if whole != PERCENT and _is_fraction(place.numbers):
        return FRACTION
    if whole is None:
        return None
    if whole == PERCENT and highest <= PERCENT:
        return PERCENTS
    xs, ys = _sides(place, order)
    fits = max(xs) <= size[1] and max(ys) <= size[0]
    return PIXELS if highest > THOUSAND and fits else THOUSANDTHS


def _sides(place: AnswerPlace, order: str) -> tuple[list[float], list[float]]:
    """Return all x and all y of a place, as they are written."""
    first, second = list(place.numbers[0::2]), list(place.numbers[1::2])
    y_first = place.form.y_first if order == AUTO or place.named or place.settled else order == Y_FIRST
    return (second, first) if y_first else (first, second)


def _add(image: ImagePlaces, place: AnswerPlace, unit: str, order: str) -> None:
    """Add a place in pixels, a box cut to the image; leave out what lies outside or has no area."""
    height, width = image.size
    whole = place.form.whole if place.settled else UNITS.get(unit)
    image.units.append(LOCATIONS if place.settled else unit)
    xs, ys = (
        [number if whole is None else number / whole * side for number in numbers]
        for numbers, side in zip(_sides(place, order), (width, height), strict=True)
    )
    label, score = place.form.label, place.form.score
    shown = place.text if label in place.text else f"{label} {place.text}"
    if len(xs) == 1:
        if 0 <= xs[0] <= width and 0 <= ys[0] <= height:
            image.points.append(_point(xs[0], ys[0], label, score))
        else:
            image.lines.append(f"left out, outside the image: {shown}")
        return
    if xs[0] > xs[1] or ys[0] > ys[1]:
        xs, ys = sorted(xs), sorted(ys)
        image.lines.append(f"corners put in order: {shown}")
    box = bounding_box((xs[0], ys[0], xs[1], ys[1]), image.size, label, 1.0 if score is None else score)
    if score is None:
        del box["score"]
    if not (box["width"] and box["height"]):
        empty = xs[0] == xs[1] or ys[0] == ys[1]
        image.lines.append(f"left out, {'without an area' if empty else 'outside the image'}: {shown}")
        return
    if min(*xs, *ys) < 0 or xs[1] > width or ys[1] > height:
        image.lines.append(f"cut to the image: {shown}")
    image.boxes.append(box)


def _point(x: float, y: float, label: str, score: float | None) -> dict:
    """Return an object of KEYPOINTS that is nothing but a point."""
    return {
        "label": label,
        "score": 1.0 if score is None else score,
        "box": {"x": x, "y": y, "width": 0.0, "height": 0.0},
        "keypoints": [{"name": label or "point", "x": x, "y": y, "score": 1.0}],
    }
