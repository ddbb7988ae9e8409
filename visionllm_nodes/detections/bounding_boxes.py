"""BOUNDING_BOX: dicts of "x", "y", "width", "height" in pixels, with "label" and "score" where they are known.

One list per image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ...mulan.boundary.interrupts import interruptible
from ...mulan.boundary.values import shown
from .checks import is_number, number, text
from .results import Detections

SIDES = ("x", "y", "width", "height")
_FAR = 2**40  # pixels: no image is so large, and a float counts them one by one
SHAPES = "one box {x, y, width, height}, a list of boxes for every image, or a list of such lists, one for each image"


def to_bounding_boxes(detections: Sequence[Detections]) -> list[list[dict]]:
    """Return a list of boxes per image, in the order of its detections; numbers are floats, cut to the image."""
    return [
        [
            bounding_box(box, one.size, one.names[label], score)
            for box, label, score in zip(one.boxes.tolist(), one.labels.tolist(), one.scores.tolist(), strict=True)
        ]
        for one in detections
    ]


def bounding_box(corners: Sequence[float], size: tuple[int, int], label: str, score: float) -> dict:
    """Return the box of `corners` x1 y1 x2 y2, cut to an image of `size` (height, width)."""
    x1, x2 = (min(max(float(corners[side]), 0.0), float(size[1])) for side in (0, 2))
    y1, y2 = (min(max(float(corners[side]), 0.0), float(size[0])) for side in (1, 3))
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "label": label, "score": float(score)}


def check_boxes(value) -> list[list[dict]]:
    """Return checked copies of any BOUNDING_BOX that nodes give, as lists; one box or one list of boxes is one list.

    Keys besides the four sides are kept; "score" becomes a float, "label" a string. Raises ValueError with the box and
    what is wrong with it.
    """
    if isinstance(value, dict):
        value = [[value]]
    elif not isinstance(value, (list, tuple)):
        raise ValueError(f"bounding boxes must be {SHAPES}; this is {_kind(value)}")
    elif not value or any(isinstance(part, dict) for part in value):
        value = [value]
    lists = []
    for index, boxes in enumerate(value, 1):
        if not isinstance(boxes, (list, tuple)):
            raise ValueError(f"bounding boxes must be {SHAPES}; entry {index} is {_kind(boxes)}")
        where = f" of image {index}" if len(value) > 1 else ""
        lists.append(
            [check_box(box, f"bounding box {position}{where}") for position, box in enumerate(interruptible(boxes), 1)]
        )
    return lists


def boxes_per_image(value, frames: int | None = None) -> list[list[dict]]:
    """Return `check_boxes` as a list for each of `frames` images, None for as many as there are lists.

    One list is for every image. Raises ValueError also with the number of images there are boxes for.
    """
    lists = check_boxes(value)
    if frames is None or len(lists) == frames:
        return lists
    if len(lists) == 1:
        return [[dict(box) for box in lists[0]] for _ in range(frames)]
    raise ValueError(
        f"there are bounding boxes for {len(lists)} images, "
        f"but {frames} image{'s are' if frames > 1 else ' is'} connected"
    )


def sort_boxes(boxes: Iterable[dict]) -> list[dict]:
    """Sort boxes as all results are: the higher score first, then the upper, then the left box.

    Boxes without a score come before all.
    """
    return sorted(boxes, key=lambda box: (-box_score(box), box["y"], box["x"]))


def box_score(box: dict) -> float:
    """Return the score; boxes that a person drew have none: they are certain."""
    return box.get("score", 1.0)


def box_corners(box: dict) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2."""
    return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]


def pixel_bounds(box: dict, height: int, width: int, margin: int = 0) -> tuple[int, int, int, int] | None:
    """Return x1, y1, x2, y2 of all pixels of the image that a box touches, with a margin; None where there is none."""
    x1, y1, x2, y2 = (min(max(corner, -_FAR), _FAR) for corner in box_corners(box))
    left, top = max(0, math.floor(x1) - margin), max(0, math.floor(y1) - margin)
    right, bottom = min(width, math.ceil(x2) + margin), min(height, math.ceil(y2) + margin)
    return (left, top, right, bottom) if left < right and top < bottom else None


def check_box(box, what: str) -> dict:
    """Return a checked copy of one box. Raises ValueError that begins with `what`."""
    if not isinstance(box, dict):
        raise ValueError(f"{what} must be a dict of {', '.join(SIDES)}; it is {shown(box)}")
    checked = dict(box)
    for side in SIDES:
        if side not in box:
            raise ValueError(f"{what} has no {side!r}; it has {', '.join(map(shown, list(box)[:10])) or 'nothing'}")
        checked[side] = number(box[side], f"{side!r} of {what}")
    for side in ("width", "height"):
        if checked[side] < 0:
            raise ValueError(f"{side!r} of {what} is below zero: {checked[side]:g}")
    if checked.get("score") is None:
        checked.pop("score", None)
    else:
        checked["score"] = number(checked["score"], f"'score' of {what}")
    if checked.get("label") is None:
        checked.pop("label", None)
    else:
        checked["label"] = check_label(checked["label"], f"'label' of {what}")
    return checked


def check_label(value, what: str) -> str:
    """Return a label as a string; some detectors give the number of a class."""
    return f"{number(value, what):.15g}" if is_number(value) else text(value, what)


def _kind(value) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
