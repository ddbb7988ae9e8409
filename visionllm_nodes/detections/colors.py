"""Colors that stay apart, on light and on dark images, however many there are."""

from __future__ import annotations

from functools import cache

import numpy as np

Color = tuple[int, int, int]
COUNT = 48  # after so many they repeat
_LEVELS = (0, 51, 102, 153, 204, 255)


def palette_color(index: int) -> Color:
    """Return the color of the object or name at `index`, 0 and up."""
    return _palette()[index % COUNT]


def text_color(background: Color) -> Color:
    """Return black or white, whichever reads better on `background`."""
    return (0, 0, 0) if _luminance(background) > 0.36 else (255, 255, 255)


@cache
def _palette() -> list[Color]:
    """Choose colors one by one.

    Each is the farthest, as eyes see it, from all before it and from black, gray and white.
    """
    candidates = np.array([(r, g, b) for r in _LEVELS for g in _LEVELS for b in _LEVELS])
    lab = _to_lab(candidates)
    saturation = np.hypot(lab[:, 1], lab[:, 2])
    nearest = np.min([np.linalg.norm(lab - _to_lab(np.array([[gray] * 3])), axis=1) for gray in (0, 128, 255)], axis=0)
    nearest[(saturation < 45) | (lab[:, 0] < 48)] = 0
    chosen: list[Color] = []
    while len(chosen) < COUNT:
        best = int(nearest.argmax())
        red, green, blue = (int(level) for level in candidates[best])
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[best], axis=1))
    return chosen


def _linear(colors: np.ndarray) -> np.ndarray:
    part = colors / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def _luminance(color: Color) -> float:
    """Return the relative luminance, 0..1."""
    return float(_linear(np.array(color)) @ (0.2126, 0.7152, 0.0722))


def _to_lab(colors: np.ndarray) -> np.ndarray:
    """Convert sRGB 0..255 [N, 3] -> CIELAB of daylight [N, 3], in which distances are near to what eyes see."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (_linear(colors) @ to_xyz.T / (0.9505, 1.0, 1.089)).T
    x, y, z = (np.where(part > 0.008856, np.cbrt(part), 7.787 * part + 16 / 116) for part in (x, y, z))
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)
