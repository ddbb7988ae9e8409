"""The tiny world: one coloured shape on a light background, how it is drawn, and how a picture of it is read back.

Pictures are uint8 arrays [64, 64, 3]. Every shape is centred; colour, background, centre and radius vary a little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

PICTURE_SIZE = 64
PALETTE = {
    "red": (220, 35, 35),
    "green": (30, 150, 50),
    "blue": (40, 70, 220),
    "yellow": (240, 205, 30),
    "purple": (140, 50, 170),
    "black": (25, 25, 25),
}
SIZES = {"small": 11.0, "big": 18.0}  # radius in pixels
BACKGROUND = 235
STRICT_SHARE = 0.8

_SUPERSAMPLING = 4
_CONTRAST = 80  # a pixel this far from the background in some channel is foreground
_SQUARE_SIDE = 0.86  # half the side, of the radius
_STAR_WAIST = 0.45  # inner radius, of the outer one


@dataclass(frozen=True)
class Thing:
    """What a picture shows: a colour of `PALETTE`, a shape of `SHAPES` and a size of `SIZES`."""

    colour: str
    shape: str
    size: str

    @property
    def held_out(self) -> bool:
        """True for the colour-shape pairs that neither the text encoder nor the adapter ever sees in training."""
        return (self.colour, self.shape) in HELD_OUT


@dataclass(frozen=True)
class Reading:
    """What a picture was read as. `shares`: per palette colour, the share of the shape's inner pixels nearest to it.

    Colour, shape and size are "" where the picture has no foreground.
    """

    colour: str
    shape: str
    size: str
    shares: dict[str, float]

    @property
    def share(self) -> float:
        """The share of the colour that was read."""
        return self.shares.get(self.colour, 0.0)

    def agrees(self, thing: Thing) -> bool:
        """Colour and shape are those asked for."""
        return self.colour == thing.colour and self.shape == thing.shape

    def agrees_strictly(self, thing: Thing) -> bool:
        """The shape is right and more than `STRICT_SHARE` of it has the right colour: no second colour bleeds in."""
        return self.shape == thing.shape and self.shares.get(thing.colour, 0.0) > STRICT_SHARE


def _inside_circle(x, y):
    return x * x + y * y < 1


def _inside_square(x, y):
    return np.maximum(abs(x), abs(y)) < _SQUARE_SIDE


def _inside_triangle(x, y):
    return (y < 0.5) & (np.sqrt(3) * abs(x) - y < 1)


def _inside_star(x, y):
    """Every edge of the star is one of ten mirror images of the line from a tip to the neighbouring waist point."""
    folded = abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    along, across = np.hypot(x, y) * np.cos(folded), np.hypot(x, y) * np.sin(folded)
    waist_along, waist_across = _STAR_WAIST * np.cos(np.pi / 5), _STAR_WAIST * np.sin(np.pi / 5)
    return across * (1 - waist_along) < (1 - along) * waist_across


# Per shape: the test whether a point lies inside (radius 1, y grows downwards, the origin is the centroid) and the
# area.
_INSIDE = {"circle": _inside_circle, "square": _inside_square, "triangle": _inside_triangle, "star": _inside_star}
_AREA = {
    "circle": np.pi,
    "square": 4 * _SQUARE_SIDE**2,
    "triangle": 3 * np.sqrt(3) / 4,
    "star": 5 * _STAR_WAIST * np.sin(np.pi / 5),
}
SHAPES = tuple(_INSIDE)
HELD_OUT = frozenset({("red", "star"), ("green", "triangle"), ("blue", "square"), ("yellow", "circle")})
THINGS = tuple(Thing(colour, shape, size) for colour in PALETTE for shape in SHAPES for size in SIZES)
SEEN_THINGS = tuple(thing for thing in THINGS if not thing.held_out)


def coverage(
    shape: str, centre_x: float, centre_y: float, radius: float, supersampling: int = _SUPERSAMPLING
) -> np.ndarray:
    """The share of each pixel that the shape covers: float array [64, 64]."""
    axis = (np.arange(PICTURE_SIZE * supersampling) + 0.5) / supersampling
    inside = _INSIDE[shape]((axis[None, :] - centre_x) / radius, (axis[:, None] - centre_y) / radius)
    return inside.reshape(PICTURE_SIZE, supersampling, PICTURE_SIZE, supersampling).mean(axis=(1, 3))


def draw(thing: Thing, rng: np.random.Generator) -> np.ndarray:
    """One picture of `thing`, uint8 [64, 64, 3]."""
    centre_x, centre_y = PICTURE_SIZE / 2 + rng.uniform(-1.5, 1.5, 2)
    return paint(
        coverage(thing.shape, centre_x, centre_y, SIZES[thing.size] * rng.uniform(0.94, 1.06)), thing.colour, rng
    )


def paint(covered: np.ndarray, colour: str, rng: np.random.Generator) -> np.ndarray:
    """A picture with about this colour where `covered` (see `coverage`) is 1, and about `BACKGROUND` where it is 0."""
    covered = covered[..., None]
    of_shape = np.array(PALETTE[colour]) + rng.uniform(-12, 12, 3)
    background = BACKGROUND + rng.uniform(-10, 10)
    return (covered * of_shape + (1 - covered) * background).clip(0, 255).round().astype(np.uint8)


def shrunk(picture: np.ndarray) -> np.ndarray:
    """A picture of any size, values 0..255 -> one of the world's size, [64, 64, 3]."""
    if picture.shape[:2] == (PICTURE_SIZE, PICTURE_SIZE):
        return picture
    image = Image.fromarray(picture.round().astype(np.uint8))
    return np.asarray(image.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BICUBIC))


def read(picture: np.ndarray) -> Reading:
    """Reads colour, shape and size back from a picture (uint8 [64, 64, 3]).

    The shape is the one whose outline, placed on the foreground's centroid and scaled to its area, overlaps it best.
    Colours are counted one pixel inside the outline, because the outline's own pixels are mixtures with the background.
    """
    pixels = picture.astype(np.float64)
    foreground = find_foreground(picture)
    inner = _eroded(foreground)
    if not inner.any():
        return Reading("", "", "", {})
    palette = np.array(list(PALETTE.values()))
    nearest = ((pixels[inner][:, None] - palette) ** 2).sum(axis=-1).argmin(axis=1)
    shares = dict(zip(PALETTE, (np.bincount(nearest, minlength=len(palette)) / len(nearest)).tolist(), strict=True))
    shape = max(SHAPES, key=lambda name: _overlap(name, foreground))
    radius = np.sqrt(foreground.sum() / _AREA[shape])
    size = min(SIZES, key=lambda name: abs(SIZES[name] - radius))
    return Reading(max(shares, key=lambda name: shares[name]), shape, size, shares)


def find_foreground(picture: np.ndarray) -> np.ndarray:
    """Which pixels are not of the border's own colour: bool [64, 64]."""
    pixels = picture.astype(np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return abs(pixels - np.median(border, axis=0)).max(axis=-1) > _CONTRAST


def _eroded(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _overlap(shape: str, foreground: np.ndarray) -> float:
    """Intersection over union of the foreground and the shape of the same centroid and area."""
    rows, columns = np.nonzero(foreground)
    radius = np.sqrt(foreground.sum() / _AREA[shape])
    outline = coverage(shape, columns.mean() + 0.5, rows.mean() + 0.5, radius, supersampling=1) > 0
    return (foreground & outline).sum() / (foreground | outline).sum()
