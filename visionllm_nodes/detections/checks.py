"""Values of a record from outside: a checked copy in one form, or ValueError that says where and what is wrong.

`what` names the value in the error: "'x' of bounding box 1", "frames[0].width of this document".
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...mulan.boundary.limits import MAX_IMAGE_PIXELS, MAX_POSITION
from ...mulan.boundary.texts import clean_text
from ...mulan.boundary.values import shown


@dataclass(frozen=True)
class Place:
    """Where a value stands in a record, such as "frames[0].objects[2].score of this document"."""

    path: str
    whole: str = ""

    def at(self, step: str | int) -> Place:
        """Return the place of a field or of an entry of a list."""
        return Place(self.path + (f"[{step}]" if isinstance(step, int) else f".{step}"), self.whole)

    def __str__(self) -> str:
        return self.path + self.whole


def require(valid: bool, what: object, expected: str, value) -> None:
    """Raise ValueError with the value where it is not valid."""
    if not valid:
        raise ValueError(f"{what} must be {expected}; it is {shown(value)}")


def is_number(value) -> bool:
    """Return whether a value is a real number: Python's, NumPy's, or a tensor of one. True and False are not."""
    plain = _plain(value)
    return isinstance(plain, numbers.Real) and not isinstance(plain, bool)


def number(value, what: object) -> float:
    """Return a finite number as float."""
    require(is_number(value), what, "a number", value)
    plain = _plain(value)
    try:
        found = float(plain)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{what} is not a finite number: {shown(plain)}")
    return found


def position(value, what: object) -> float:
    """Return a coordinate of a keypoint in pixels."""
    found = number(value, what)
    require(abs(found) <= MAX_POSITION, what, f"at most {MAX_POSITION} pixels from the image's corner", found)
    return found


def whole_number(value, what: object, least: int = 0) -> int:
    """Return a whole number, also one that is written as 64.0."""
    expected = "a whole number above 0" if least else "a whole number, 0 or above"
    require(is_number(value), what, expected, value)
    found = number(value, what)
    require(found == int(found) and found >= least, what, expected, value)
    return int(found)


def image_size(width, height, what: Place | str = "", names: tuple[str, str] = ("width", "height")) -> tuple[int, int]:
    """Return width and height of an image. Raises ValueError also where it would have too many pixels."""
    sides = []
    for name, side in zip(names, (width, height), strict=True):
        sides.append(whole_number(side, what.at(name) if isinstance(what, Place) else f'"{name}" of {what}', 1))
    if sides[0] * sides[1] > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{what} has {shown(sides[0])} x {shown(sides[1])} pixels, and an image has at most {MAX_IMAGE_PIXELS}"
        )
    return sides[0], sides[1]


def text(value, what: object) -> str:
    """Return a string in whole characters."""
    require(isinstance(value, str), what, "a string", value)
    return clean_text(value)


def entries(value, what: object, expected: str = "a list") -> list:
    """Return the entries of a list, tuple, array or tensor."""
    if isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim:
        try:
            value = value.tolist()
        except (RuntimeError, TypeError):  # a tensor without values, a sparse one
            pass
    require(isinstance(value, (list, tuple)), what, expected, value)
    return list(value)


def fields(value, what: object, expected: str = "an object") -> dict:
    """Return a dict as it is."""
    require(isinstance(value, dict), what, expected, value)
    return value


def _plain(value) -> Any:
    """Return the one number of an array or a tensor; anything else as it is."""
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        try:
            return value.item()
        except (ValueError, RuntimeError):  # several numbers, or a tensor without values
            pass
    return value
