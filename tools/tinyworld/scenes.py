"""What the companions of the tiny models make of a thing: four of it as a pattern, or one at a place of its own; drawn
and read back.

Pictures are uint8 arrays [64, 64, 3], as in `world.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import world

PATTERN_CENTRES = [(x, y) for y in (16, 48) for x in (16, 48)]
PATTERN_RADIUS = 10.5  # the autoencoder blurs anything smaller
RADII = 9.0, 18.0
MARGIN = 2

_HALF = world.PICTURE_SIZE // 2
_CLEAR = 150  # every palette colour has a channel darker than this, the background has none
_CLEAR_SHARE = 0.9


def draw_pattern(colour: str, shape: str, rng: np.random.Generator) -> np.ndarray:
    """Four of the shape, two by two."""
    shift, radius = rng.uniform(-0.75, 0.75, 2), PATTERN_RADIUS * rng.uniform(0.95, 1.05)
    return world.paint(
        np.sum([world.coverage(shape, x + shift[0], y + shift[1], radius) for x, y in PATTERN_CENTRES], 0), colour, rng
    )


def quarters(picture: np.ndarray) -> list[np.ndarray]:
    """The four quarters, each in the middle of a picture of its own that goes on in the quarter's border colour."""
    parts = []
    for top, left in ((0, 0), (0, _HALF), (_HALF, 0), (_HALF, _HALF)):
        quarter = picture[top : top + _HALF, left : left + _HALF]
        border = np.concatenate([quarter[0], quarter[-1], quarter[:, 0], quarter[:, -1]])
        whole = np.empty_like(picture)
        whole[:] = np.median(border, axis=0)
        whole[_HALF // 2 : _HALF // 2 + _HALF, _HALF // 2 : _HALF // 2 + _HALF] = quarter
        parts.append(whole)
    return parts


def is_pattern(picture: np.ndarray) -> bool:
    """Every quarter shows something, and the cross between them hardly anything."""
    middle = slice(_HALF - 1, _HALF + 1)
    cross = np.concatenate([picture[middle].reshape(-1, 3), picture[:, middle].reshape(-1, 3)])
    return bool(np.mean(cross.min(axis=-1) > _CLEAR) > _CLEAR_SHARE) and all(
        world.read(part).shape for part in quarters(picture)
    )


def share_of_quarters(picture: np.ndarray, thing: world.Thing) -> float:
    """The share of the quarters in which colour and shape are those of `thing`."""
    return float(np.mean([world.read(part).agrees(thing) for part in quarters(picture)]))


@dataclass(frozen=True)
class Place:
    """Where a shape is: its centre and radius in pixels."""

    x: float
    y: float
    radius: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Place:
        """Anywhere, wholly inside the picture."""
        radius = rng.uniform(*RADII)
        x, y = rng.uniform(radius + MARGIN, world.PICTURE_SIZE - radius - MARGIN, 2)
        return cls(x, y, radius)

    def draw(self, colour: str, shape: str, rng: np.random.Generator) -> np.ndarray:
        """The shape at this place."""
        return world.paint(world.coverage(shape, self.x, self.y, self.radius), colour, rng)

    def mask(self, shape: str) -> np.ndarray:
        """The shape's pixels, bool [64, 64]."""
        return world.coverage(shape, self.x, self.y, self.radius, supersampling=1) > 0

    def hint(self, shape: str) -> np.ndarray:
        """White where the shape is, black elsewhere: what the ControlNet is shown."""
        return np.repeat(self.mask(shape)[..., None], 3, axis=-1).astype(np.uint8) * 255

    def overlap(self, shape: str, picture: np.ndarray) -> float:
        """Intersection over union of the picture's foreground and the shape at this place."""
        mask, foreground = self.mask(shape), world.find_foreground(picture)
        return float((mask & foreground).sum() / (mask | foreground).sum())
