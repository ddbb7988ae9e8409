"""Colours that stay apart, on light and on dark pictures, however many there are."""

from __future__ import annotations

from functools import cache

import numpy as np

Colour = tuple[int, int, int]
COUNT = 48  # after so many they repeat
_LEVELS = (0, 51, 102, 153, 204, 255)


def colour(number: int) -> Colour:
    """The colour of the thing or name with this number, 0 and up."""
    return _palette()[number % COUNT]


def ink(paper: Colour) -> Colour:
    """Black or white, whichever reads better on `paper`."""
    return (0, 0, 0) if _light(paper) > 0.36 else (255, 255, 255)


@cache
def _palette() -> list[Colour]:
    """Each next one is the farthest, as eyes see it, from all before it and from black, grey and white."""
    candidates = np.array([(r, g, b) for r in _LEVELS for g in _LEVELS for b in _LEVELS])
    seen = _as_seen(candidates)
    saturation = np.hypot(seen[:, 1], seen[:, 2])
    nearest = np.min(
        [np.linalg.norm(seen - _as_seen(np.array([[grey] * 3])), axis=1) for grey in (0, 128, 255)], axis=0
    )
    nearest[(saturation < 45) | (seen[:, 0] < 48)] = 0
    chosen: list[Colour] = []
    while len(chosen) < COUNT:
        best = int(nearest.argmax())
        chosen.append(tuple(int(level) for level in candidates[best]))
        nearest = np.minimum(nearest, np.linalg.norm(seen - seen[best], axis=1))
    return chosen


def _linear(colours: np.ndarray) -> np.ndarray:
    part = colours / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def _light(one: Colour) -> float:
    """Relative luminance, 0..1."""
    return float(_linear(np.array(one)) @ (0.2126, 0.7152, 0.0722))


def _as_seen(colours: np.ndarray) -> np.ndarray:
    """sRGB 0..255 [N, 3] -> CIELAB of daylight [N, 3], in which distances are near to what eyes see."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (_linear(colours) @ to_xyz.T / (0.9505, 1.0, 1.089)).T
    x, y, z = (np.where(part > 0.008856, np.cbrt(part), 7.787 * part + 16 / 116) for part in (x, y, z))
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)
