"""Pictures of several coloured shapes, with what is true of them: boxes, masks, corners.

Pictures are uint8 arrays [128, 128, 3]. Colours, shapes and sizes are those of the tiny world
(`mulan.tinyworld.world`); a shape stands anywhere, slightly turned, and touches no other. Coordinates are pixels, (0,
0) is the picture's top left corner, y grows downwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from ..tinyworld.world import BACKGROUND, HELD_OUT, PALETTE, SHAPES, Thing

PICTURE_SIZE = 128
RADII = {"small": (9.5, 12.5), "big": (18.0, 22.0)}
MOST_ITEMS = 5
GAP = 2.0  # between the circles around two shapes
TILT = 12.0  # degrees, either way; a circle is never turned

_SUPERSAMPLING = 4
_SQUARE = 0.86
_WAIST = 0.45


def _ring(angles, radius=1.0) -> np.ndarray:
    """Points at these angles (degrees, clockwise from the top) on a circle: [N, 2]."""
    angles = np.deg2rad(angles)
    return radius * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _star_outline() -> np.ndarray:
    return np.stack([_ring(np.arange(5) * 72), _ring(np.arange(5) * 72 + 36, _WAIST)], axis=1).reshape(10, 2)


# Outlines of radius 1, clockwise from the top (left); a circle's is fine enough to be one.
_OUTLINES = {
    "circle": _ring(np.arange(180) * 2),
    "square": _SQUARE * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": _ring(np.array([0, 120, 240])),
    "star": _star_outline(),
}
KEYPOINTS = {
    "circle": ("top", "right", "bottom", "left"),
    "square": ("top left corner", "top right corner", "bottom right corner", "bottom left corner"),
    "triangle": ("top corner", "right corner", "left corner"),
    "star": ("top tip", "right tip", "lower right tip", "lower left tip", "left tip"),
}
_KEYPOINT_STEPS = {"circle": 45, "square": 1, "triangle": 1, "star": 2}  # between the outline points that are keypoints


@dataclass(frozen=True)
class Item:
    """A shape in a picture: its centre, the radius of the circle around it, its turn in degrees (clockwise)."""

    thing: Thing
    x: float
    y: float
    radius: float
    turn: float

    @cached_property
    def outline(self) -> np.ndarray:
        """Corner points of the shape, [N, 2] pixels."""
        turn = np.deg2rad(self.turn)
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        return _OUTLINES[self.thing.shape] @ rotation * self.radius + (self.x, self.y)

    @property
    def keypoints(self) -> np.ndarray:
        """The points named in `KEYPOINTS[shape]`, in that order: [K, 2] pixels."""
        return self.outline[:: _KEYPOINT_STEPS[self.thing.shape]]

    @property
    def box(self) -> np.ndarray:
        """x0, y0, x1, y1 in pixels, tight."""
        return np.concatenate([self.outline.min(axis=0), self.outline.max(axis=0)])

    def coverage(self) -> np.ndarray:
        """The share of each pixel that the shape covers: float32 [128, 128], 0..1."""
        side = PICTURE_SIZE * _SUPERSAMPLING
        canvas = Image.new("L", (side, side))
        # A pixel is drawn when its centre is inside, and PIL counts pixel centres as whole numbers.
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in self.outline * _SUPERSAMPLING - 0.5], fill=255)
        return np.asarray(canvas.reduce(_SUPERSAMPLING), np.float32) / 255

    @cached_property
    def mask(self) -> np.ndarray:
        """The pixels that the shape covers at least half of: bool [128, 128]."""
        return self.coverage() >= 0.5


@dataclass(frozen=True)
class Scene:
    """A picture and all that stands in it."""

    picture: np.ndarray
    items: tuple[Item, ...]


def draw_scene(rng: np.random.Generator, things: tuple[Thing, ...], fewest: int = 2, most: int = MOST_ITEMS) -> Scene:
    """A picture of `fewest` to `most` of these things, in places where none touches another."""
    wanted = int(rng.integers(fewest, most + 1))
    return _scene(rng, wanted, lambda index: things[rng.integers(len(things))])


def draw_these(rng: np.random.Generator, things: Sequence[Thing]) -> Scene:
    """A picture of exactly these things, in places where none touches another."""
    return _scene(rng, len(things), things.__getitem__)


def _scene(rng: np.random.Generator, wanted: int, choose: Callable[[int], Thing]) -> Scene:
    items: list[Item] = []
    attempts = 0
    while len(items) < wanted:
        attempts += 1
        if attempts > 200:  # no room is left: begin again
            items, attempts = [], 0
        thing = choose(len(items))
        radius = rng.uniform(*RADII[thing.size])
        x, y = rng.uniform(radius + 1, PICTURE_SIZE - radius - 1, 2)
        if all(np.hypot(x - other.x, y - other.y) >= radius + other.radius + GAP for other in items):
            items.append(Item(thing, x, y, radius, 0.0 if thing.shape == "circle" else rng.uniform(-TILT, TILT)))
    return Scene(paint(items, rng), tuple(items))


def paint(items: list[Item], rng: np.random.Generator) -> np.ndarray:
    picture = np.full((PICTURE_SIZE, PICTURE_SIZE, 3), BACKGROUND + rng.uniform(-10, 10), np.float32)
    for item in items:
        covered = item.coverage()[..., None]
        picture += covered * (
            np.array(PALETTE[item.thing.colour], np.float32) + rng.uniform(-12, 12, 3).astype(np.float32) - picture
        )
    return picture.clip(0, 255).round().astype(np.uint8)


SIZES = tuple(RADII)
SEEN = tuple(Thing(c, s, size) for c in PALETTE for s in SHAPES for size in SIZES if (c, s) not in HELD_OUT)
UNSEEN = tuple(Thing(c, s, size) for c in PALETTE for s in SHAPES for size in SIZES if (c, s) in HELD_OUT)

Pair = tuple[Scene, int, Scene]


def draw_pair(rng: np.random.Generator) -> Pair:
    """A scene, the index of a thing in it, and a scene with that colour and shape, among others of the same shape and
    of the same colour.
    """
    example = draw_scene(rng, SEEN)
    marked = int(rng.integers(len(example.items)))
    thing = example.items[marked].thing
    alike = [other for other in SEEN if (other.colour, other.shape) == (thing.colour, thing.shape)]
    near = [other for other in SEEN if (other.colour == thing.colour) != (other.shape == thing.shape)]
    others = tuple(near[index] for index in rng.permutation(len(near))[:4])
    while True:
        scene = draw_scene(rng, (*alike, *others), fewest=4)
        if any(item.thing in alike for item in scene.items):
            return example, marked, scene
