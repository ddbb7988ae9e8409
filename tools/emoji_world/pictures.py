"""Pictures of the emoji world: uint8 [96, 96, 3], one thing in the middle of a plain background."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ..tinyworld.stages import SEED, as_input
from .concepts import CHARACTERS, glyph_array

PICTURE_SIZE = 96
SIDES = (76, 86)  # pixels of the thing's longer side
SHIFT = 2  # pixels from the middle
BACKGROUNDS = {
    "red": (226, 106, 98),
    "green": (126, 196, 122),
    "blue": (122, 164, 236),
    "yellow": (248, 222, 118),
    "purple": (186, 140, 222),
    "black": (52, 52, 56),
}
LIGHT = 240  # the background that no caption names


def is_held_out(thing: int, background: str) -> bool:
    """Whether the adapter never sees this thing on this background in training: one of five pairs."""
    return bool(background) and (thing + list(BACKGROUNDS).index(background)) % 5 == 0


def read_background(picture: np.ndarray) -> str:
    """The name of the background of a picture, uint8 [96, 96, 3], by the colour of most of its border; "" if light."""
    border = np.concatenate([picture[:3].reshape(-1, 3), picture[-3:].reshape(-1, 3), picture[:, :3].reshape(-1, 3)])
    known = {"": (LIGHT,) * 3, **BACKGROUNDS}
    distances = ((np.median(border, axis=0) - np.array(list(known.values()))) ** 2).sum(1)
    return list(known)[int(distances.argmin())]


def draw(thing: int, rng: np.random.Generator, background: str = "") -> np.ndarray:
    """One picture of a thing, by its place in `CHARACTERS`, on a named background or a light one."""
    side = int(rng.integers(SIDES[0], SIDES[1] + 1))
    glyph = torch.from_numpy(glyph_array(thing)).permute(2, 0, 1)[None]
    glyph = F.interpolate(glyph, (side, side), mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)
    base = np.array(BACKGROUNDS[background]) if background else np.full(3, LIGHT) + rng.uniform(-8, 8)
    colour = torch.from_numpy((base + rng.uniform(-5, 5, 3)).clip(0, 255) / 255).float()
    picture = colour[:, None, None].repeat(1, PICTURE_SIZE, PICTURE_SIZE)
    top, left = (PICTURE_SIZE - side) // 2 + rng.integers(-SHIFT, SHIFT + 1, 2)
    place = picture[:, top : top + side, left : left + side]
    place.copy_(glyph[:3] + place * (1 - glyph[3:]))
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def draw_corpus(seed: int, backgrounds: Sequence[str], things: Sequence[int] = range(len(CHARACTERS))) -> torch.Tensor:
    """A drawing of each thing on each background, in this order: uint8 [things, backgrounds, 3, 96, 96]."""
    rng = np.random.default_rng(seed)
    pictures = np.stack([[draw(thing, rng, background) for background in backgrounds] for thing in things])
    return torch.from_numpy(pictures).permute(0, 1, 4, 2, 3).contiguous()


def own_pictures() -> torch.Tensor:
    """A drawing of each thing: float32 [130, 3, 96, 96] in 0..1."""
    return as_input(draw_corpus(SEED, ("",))[:, 0])


def nearest(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [N, 3, 96, 96] -> the thing whose own picture each is nearest to."""
    seen, own = (F.avg_pool2d(some, 2).flatten(1) for some in (pictures, own_pictures()))
    return torch.cdist(seen, own).argmin(1)


def picture_vectors(size: int) -> torch.Tensor:
    """What the things look like, in the `size` directions in which they differ most: unit rows [130, size]."""
    pictures = draw_corpus(SEED, ("",) * 4).flatten(0, 1)
    small = F.avg_pool2d(as_input(pictures), 6).flatten(1).unflatten(0, (len(CHARACTERS), -1)).mean(1)
    axes, _, _ = torch.linalg.svd(small - small.mean(0), full_matrices=False)
    return F.normalize(axes[:, :size], dim=-1)
