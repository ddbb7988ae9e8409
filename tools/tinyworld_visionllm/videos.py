"""Videos of coloured shapes that move, cross, hide each other, leave and come back, with what is true of each frame.

Drawn as `scenes.py` draws pictures; what comes later in `Video.things` lies in front.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..tinyworld.world import HELD_OUT, PALETTE, SHAPES, Thing
from .scenes import PICTURE_SIZE, Item, paint

FRAMES = 60
RADII = 11.0, 20.0
SPEEDS = 1.5, 5.0  # pixels per frame
OUTSIDE = 45  # an object turns round so many pixels beyond the edge: it is away for a while
LEAST_SEEN = 0.4  # of a shape's area, for it to count as there


@dataclass(frozen=True)
class Video:
    """Frames uint8 [F, 128, 128, 3], and of each the objects that can be seen: their index and box x0, y0, x1, y1."""

    frames: np.ndarray
    things: tuple[Thing, ...]
    seen: tuple[dict[int, np.ndarray], ...]


def draw_video(rng: np.random.Generator, objects: int = 5, twins: bool = False) -> Video:
    """Two shapes, several objects of each, in colours of their own; with `twins` all of a shape in one colour."""
    things = _things(rng, objects, twins)
    radii = rng.uniform(*RADII, objects)
    places, angles = (
        rng.uniform(radii.max(), PICTURE_SIZE - radii.max(), (objects, 2)),
        rng.uniform(0, 2 * np.pi, objects),
    )
    steps = np.stack((np.cos(angles), np.sin(angles)), 1) * rng.uniform(*SPEEDS, objects)[:, None]
    items = [
        Item(thing, x, y, radius, 0.0 if thing.shape == "circle" else rng.uniform(-10, 10))
        for thing, (x, y), radius in zip(things, places.tolist(), radii.tolist(), strict=True)
    ]
    frames, seen = [], []
    shades = rng.integers(2**31)  # of background and colours: the same in every frame
    for _ in range(FRAMES):
        places += steps
        turning = (places < -OUTSIDE) & (steps < 0) | (places > PICTURE_SIZE + OUTSIDE) & (steps > 0)
        steps = np.where(turning, -steps, steps)
        now = [replace(item, x=x, y=y) for item, (x, y) in zip(items, places.tolist(), strict=True)]
        frames.append(paint(now, np.random.default_rng(shades)))
        seen.append(_seen(now))
    return Video(np.stack(frames), things, tuple(seen))


def _things(rng: np.random.Generator, objects: int, twins: bool) -> tuple[Thing, ...]:
    shapes = rng.choice(list(SHAPES), 2, replace=False).tolist()
    colours = {
        shape: rng.permutation([colour for colour in PALETTE if (colour, shape) not in HELD_OUT]).tolist()
        for shape in shapes
    }
    return tuple(
        Thing(colours[shape][0 if twins else index // 2 % len(colours[shape])], shape, "big")
        for index, shape in enumerate((shapes * objects)[:objects])
    )


def _seen(items: list[Item]) -> dict[int, np.ndarray]:
    """The box, inside the picture, of each object of which enough can be seen."""
    seen, hidden = {}, np.zeros((PICTURE_SIZE, PICTURE_SIZE), bool)
    for index, item in reversed([*enumerate(items)]):
        x, y = item.outline.T
        whole = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        if (item.mask & ~hidden).sum() >= LEAST_SEEN * whole:
            seen[index] = item.box.clip(0, PICTURE_SIZE)
        hidden |= item.mask
    return seen
