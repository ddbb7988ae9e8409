"""BOUNDING_BOX: dicts of "x", "y", "width", "height" in pixels, with "label" and "score" where they are known; one list for each picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .results import Detection

SIDES = ("x", "y", "width", "height")
SHAPES = (
    "one box {x, y, width, height}, a list of boxes for every picture, or a list of such lists, one for each picture"
)


def to_bounding_boxes(detections: Sequence[Detection]) -> list[list[dict]]:
    """A list for each picture, in the order of its things; numbers are floats, cut to the picture."""
    return [
        [
            bounding_box(box, found.size, found.names[label], score)
            for box, label, score in zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist())
        ]
        for found in detections
    ]


def bounding_box(corners: Sequence[float], size: tuple[int, int], label: str, score: float) -> dict:
    """`corners` x1 y1 x2 y2, cut to a picture of `size` (height, width)."""
    x1, x2 = (min(max(float(corners[side]), 0.0), float(size[1])) for side in (0, 2))
    y1, y2 = (min(max(float(corners[side]), 0.0), float(size[0])) for side in (1, 3))
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "label": label, "score": float(score)}


def frames_of(value, frames: int | None = None) -> list[list[dict]]:
    """Any BOUNDING_BOX that nodes give -> a list of checked copies for each of `frames` pictures (None: as many as there are lists).

    One box or one list of boxes is for every picture. Keys besides the four sides are kept; "score" becomes a float.
    Raises ValueError that names the box and what is wrong with it, or says how many pictures there are boxes for.
    """
    if isinstance(value, dict):
        value = [[value]]
    elif not isinstance(value, (list, tuple)):
        raise ValueError(f"bounding boxes must be {SHAPES}; this is {_kind(value)}")
    elif not value or any(isinstance(part, dict) for part in value):
        value = [value]
    lists = []
    for number, boxes in enumerate(value, 1):
        if not isinstance(boxes, (list, tuple)):
            raise ValueError(f"bounding boxes must be {SHAPES}; entry {number} is {_kind(boxes)}")
        where = f" of picture {number}" if len(value) > 1 else ""
        lists.append([_checked(box, f"bounding box {position}{where}") for position, box in enumerate(boxes, 1)])
    if frames is None or len(lists) == frames:
        return lists
    if len(lists) == 1:
        return [[dict(box) for box in lists[0]] for _ in range(frames)]
    raise ValueError(
        f"there are bounding boxes for {len(lists)} pictures, but {frames} picture{'s are' if frames > 1 else ' is'} connected"
    )


def in_order(boxes: Iterable[dict]) -> list[dict]:
    """The one order of all results: the higher score first (one without a score before all), then the upper, then the left box."""
    return sorted(boxes, key=lambda box: (-score_of(box), box["y"], box["x"]))


def score_of(box: dict) -> float:
    """Boxes that a person drew have none: they are certain."""
    return box.get("score", 1.0)


def corners_of(box: dict) -> tuple[float, float, float, float]:
    """-> x1, y1, x2, y2."""
    return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]


def whole_pixels(box: dict, height: int, width: int, margin: int = 0) -> tuple[int, int, int, int] | None:
    """-> x1, y1, x2, y2 of all pixels that a box touches, with a margin, in the picture; None where that is no pixel."""
    x1, y1, x2, y2 = corners_of(box)
    left, top = max(0, math.floor(x1) - margin), max(0, math.floor(y1) - margin)
    right, bottom = min(width, math.ceil(x2) + margin), min(height, math.ceil(y2) + margin)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _checked(box, where: str) -> dict:
    if not isinstance(box, dict):
        raise ValueError(f"{where} must be a dict of {', '.join(SIDES)}; it is {_kind(box)}")
    checked = dict(box)
    for side in SIDES:
        if side not in box:
            raise ValueError(f"{where} has no {side!r}; it has {', '.join(map(repr, box)) or 'nothing'}")
        checked[side] = _number(box[side], f"{side!r} of {where}")
    for side in ("width", "height"):
        if checked[side] < 0:
            raise ValueError(f"{side!r} of {where} is below zero: {checked[side]:g}")
    if checked.get("score") is None:
        checked.pop("score", None)
    else:
        checked["score"] = _number(checked["score"], f"'score' of {where}")
    if checked.get("label") is None:
        checked.pop("label", None)
    else:
        checked["label"] = str(checked["label"])
    return checked


def _number(value, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be a number; it is {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{what} is not a finite number: {number}")
    return number


def _kind(value) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
