"""Drawings for the strict reader: good ones, as a diffusion model makes them on its good days, and spoiled ones.

Pictures are float32 [N, 3, 96, 96] in 0..1. Everything is drawn from a torch generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from .concepts import CHARACTERS, DATA, glyph_array
from .pictures import BACKGROUNDS, LIGHT, PICTURE_SIZE

OTHERS = DATA / "others.webp"  # emoji that are none of the things, from where the things' pictures are
OTHERS_SIDE, OTHERS_COLUMNS = 80, 16
OTHER_CHARACTERS = (
    *"🐯🐮🐭🐹🐰🐺🐗🐴🦄🦝🐲🐳🦑🦐🐡🦎🦖🐀🦔🦅🦚🦜🦢🕷🦂🦗🐜🐛🥥🍈🍊🥭🫐🥔🥒🥬🧄🧅🥜🌰🍞🥞🧇🥩🥓🥪🌮🌯🥚🍳🥘🍲🥗🍱🍙🍣🍤🥟🦞🍰🧁🥧🍫🍬🍮",
    *"🍯🍼🥛☕🍵🍷🍸🍹🥤🍴🌍🧭🏔🏝🏟🏛🧱🏥🏦🏪🏭🗼🗽⛪🕌⛲⛺🎡🎪🚃🚑🚓🚛🏍🛵🚲🛴🛹⛽🚦🛑🛶🚤🚢🪂💺⌛🌝⭐☁⛈🌪⛄🌊🧨🎏🎀🎗🎫🥇🎾🥏🎳🏏🏑",
    *"🥊🥋🥅⛳🎣🎿🛷🪁🎮🎰🎲🧸♠♦🀄🎨🧵🧶👓🥽🥼👔🧣🧤🧥🧦👙👛👜👞🥾👠👒🎓⛑📿💍📢🎵🎙📻🎷🎺🎻🥁📱🔋💻🖨🖱💾📺🔎🕯📰💰💵📦📫🖍📅📌📎📏✂",
    *"🗑🪓🗡🏹🔧⚙🧲🔬🔭📡💉💊🛏🛋🚽🚿🛁🧴🧷🧹🧺🧻🧼🧽🧯🛒⚰🗿😀😡🤡👹👻💀💩🤲👍👀👂👃🦷🧠👣👮🧙🧑👶🎅🪐🦩🦥🦦🦨🦘🐿🐉🦕🦙🐃🐂🐏🐑🐐🦌🐾",
)
OTHERS_SEEN = 200  # by the reader in training; the rest is for tests
GLYPH_SIDE = 81  # pixels of the longer side, as `pictures.draw` has it on average
DIFFERENT = 0.07  # mean difference inside the outline below which a spoiled drawing is still a good one
GLYPH = torch.Tensor  # [N, 4, 96, 96], colours multiplied by alpha


@cache
def things() -> GLYPH:
    """The glyphs of all things, in the middle: [130, 4, 96, 96]."""
    return _centred(torch.stack([torch.from_numpy(glyph_array(thing)) for thing in range(len(CHARACTERS))]))


@cache
def others() -> GLYPH:
    """Emoji that are none of the things."""
    pixels = np.asarray(Image.open(OTHERS).convert("RGBA"), np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    rows = pixels.reshape(-1, OTHERS_SIDE, OTHERS_COLUMNS, OTHERS_SIDE, 4).swapaxes(1, 2)
    return _centred(torch.from_numpy(rows.reshape(-1, OTHERS_SIDE, OTHERS_SIDE, 4)[: len(OTHER_CHARACTERS)].copy()))


def _centred(glyphs: torch.Tensor) -> GLYPH:
    side, edge = GLYPH_SIDE, (PICTURE_SIZE - GLYPH_SIDE) // 2
    glyphs = F.interpolate(glyphs.permute(0, 3, 1, 2), (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return F.pad(glyphs, (edge, PICTURE_SIZE - side - edge) * 2)


class Dice:
    """Random numbers of one generator."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def below(self, end: int, *shape: int) -> torch.Tensor:
        return torch.randint(end, shape, generator=self.generator)

    def sign(self, *shape: int) -> torch.Tensor:
        return 2.0 * self.below(2, *shape) - 1


# --- what is done to drawings


@cache
def _grid() -> torch.Tensor:
    """Where each pixel lies: x and y in -1..1, [96, 96, 2]."""
    line = (torch.arange(PICTURE_SIZE) * 2 + 1) / PICTURE_SIZE - 1
    return torch.stack([line.expand(PICTURE_SIZE, -1), line[:, None].expand(-1, PICTURE_SIZE)], dim=-1)


def bend(
    images: torch.Tensor, dice: Dice, pixels: torch.Tensor, turn: torch.Tensor, loose: float = 1.0, cells: int = 6
):
    """Elastic deformation by about `pixels` [N], a turn by `turn` radians [N], a little scale, shear and shift."""
    count = len(images)
    angle, scale = turn, 1 + dice.uniform(-0.07, 0.07, count) * loose
    aspect, shear = 1 + dice.uniform(-0.04, 0.04, count) * loose, dice.uniform(-0.04, 0.04, count) * loose
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = dice.uniform(-4, 4, count, 2) * loose * 2 / PICTURE_SIZE
    matrix = torch.stack([cos * aspect, sin + shear, shift[:, 0], -sin, cos / aspect, shift[:, 1]], -1)
    places = F.affine_grid(matrix.view(-1, 2, 3), [count, 1, PICTURE_SIZE, PICTURE_SIZE], align_corners=False)
    field = dice.normal(count, 2, cells, cells) * (pixels * 2 / PICTURE_SIZE)[:, None, None, None]
    field = F.interpolate(field, PICTURE_SIZE, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(images, places + field, padding_mode="border", align_corners=False)


def swirl(images: torch.Tensor, dice: Dice) -> torch.Tensor:
    """The middle turned against the border."""
    radius = _grid().norm(dim=-1)
    angle = (dice.uniform(1.8, 4.5, len(images)) * dice.sign(len(images)))[:, None, None] * (1 - radius).clamp(min=0)
    cos, sin = angle.cos(), angle.sin()
    x, y = _grid().unbind(-1)
    places = torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False)


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur."""
    reach = math.ceil(2.5 * sigma)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    line = (line / line.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    padded = F.conv2d(padded, line[:, :, None], groups=images.shape[1])
    return F.conv2d(padded, line[..., None], groups=images.shape[1])


def compose(glyphs: GLYPH, dice: Dice) -> torch.Tensor:
    """Glyphs on backgrounds: a light one, a named one or any."""
    count = len(glyphs)
    named = torch.tensor(list(BACKGROUNDS.values()))[dice.below(len(BACKGROUNDS), count)] / 255
    light = (LIGHT / 255 + dice.uniform(-0.04, 0.04, count, 1)).expand(-1, 3)
    share = dice.uniform(0, 1, count, 1)
    colour = torch.where(share < 0.5, light, torch.where(share < 0.85, named, dice.uniform(0, 1, count, 3)))
    colour = (colour + dice.uniform(-0.02, 0.02, count, 3)).clamp(0, 1)[:, :, None, None]
    return glyphs[:, :3] + colour * (1 - glyphs[:, 3:])


def wear(images: torch.Tensor, dice: Dice) -> torch.Tensor:
    """Mild blur, colour changes and noise, fine and coarse: what a person does not mind."""
    count = len(images)
    soft = blur(images, 1.6)
    share = (dice.uniform(-0.6, 1, count)).clamp(min=0)[:, None, None, None]
    images = images + share * (soft - images)
    places = F.interpolate(dice.normal(count, 1, 5, 5), PICTURE_SIZE, mode="bilinear").mul(3).sigmoid()
    images = images + places * (dice.uniform(-1, 1, count).clamp(min=0)[:, None, None, None]) * (soft - images)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * dice.uniform(0.75, 1.25, count)[:, None, None, None]
    images = images * dice.uniform(0.87, 1.13, count)[:, None, None, None]
    images = images + dice.uniform(-0.04, 0.04, count, 3)[:, :, None, None]
    for cells, most in ((PICTURE_SIZE, 0.03), (24, 0.06), (8, 0.06)):
        noise = dice.normal(count, 3, cells, cells) * dice.uniform(-most / 2, most, count).clamp(0)[:, None, None, None]
        images = images + (noise if cells == PICTURE_SIZE else F.interpolate(noise, PICTURE_SIZE, mode="bilinear"))
    return images.clamp(0, 1)


def fair(glyphs: GLYPH, dice: Dice) -> torch.Tensor:
    """Drawings that a person still passes, though a model made them: a little wavy and soft."""
    return molten(glyphs, dice, (0.4, 1.9), (0.9, 2.0))


def good(glyphs: torch.Tensor, dice: Dice) -> torch.Tensor:
    """Glyphs, or pictures, a little moved and bent."""
    pixels, turn = dice.uniform(-0.3, 1.3, len(glyphs)).clamp(min=0), dice.uniform(-0.1, 0.1, len(glyphs))
    return bend(glyphs, dice, pixels, turn)


# --- spoiled drawings: glyphs [N, 4, 96, 96] -> pictures that are none of the things


def blurred(glyphs: GLYPH, dice: Dice) -> torch.Tensor:
    return blur(compose(good(glyphs, dice), dice), dice.uniform(4.5, 9, 1).item())


def blobs(glyphs: GLYPH, dice: Dice) -> torch.Tensor:
    """Sharp silhouettes, rounder than the thing's, filled with its blurred colours."""
    sigma = dice.uniform(4, 8, 1).item()
    soft = blur(good(glyphs, dice), sigma)
    alpha = (blur(soft[:, 3:], 1.0) - 0.5).mul(dice.uniform(4, 14, 1).item()).add(0.5).clamp(0, 1)
    colours = (soft[:, :3] / soft[:, 3:].clamp(min=0.05)).clamp(0, 1)
    flat = (soft[:, :3].sum((2, 3)) / soft[:, 3:].sum((2, 3)))[:, :, None, None]
    share = dice.below(2, len(glyphs))[:, None, None, None]
    return compose(torch.cat([(share * flat + (1 - share) * colours) * alpha, alpha], 1), dice)


def molten(glyphs: GLYPH, dice: Dice, waves=(3.5, 6.5), softness=(3.0, 4.8)) -> torch.Tensor:
    """Roughly the right colours in roughly the right places, wavy and without details: a model's early drawings."""
    count = len(glyphs)
    glyphs = bend(glyphs, dice, dice.uniform(*waves, count), dice.uniform(-0.1, 0.1, count), cells=13)
    soft = blur(glyphs, dice.uniform(*softness, 1).item())
    alpha = (soft[:, 3:] - 0.5).mul(dice.uniform(2, 6, 1).item()).add(0.5).clamp(0, 1)
    colours = soft[:, :3] / soft[:, 3:].clamp(min=0.05)
    mean = (soft[:, :3].sum((2, 3)) / soft[:, 3:].sum((2, 3)))[:, :, None, None]
    colours = mean + (colours - mean) * dice.uniform(1, 2.2, count)[:, None, None, None]
    return compose(torch.cat([colours.clamp(0, 1) * alpha, alpha], 1), dice)


def _side_of_a_line(glyphs: GLYPH, dice: Dice, least: float, most: float) -> torch.Tensor:
    """1 on the side of a random straight line that holds such a share of the glyph, 0 on the other: [N, 1, 96, 96]."""
    angle = dice.uniform(0, 2 * math.pi, len(glyphs))
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    along = torch.einsum("hwc,nc->nhw", _grid(), direction).flatten(1)
    values, order = along.sort(1)
    mass = glyphs[:, 3].flatten(1).gather(1, order).cumsum(1)
    wanted = dice.uniform(least, most, len(glyphs), 1) * mass[:, -1:]
    edge = values.gather(1, torch.searchsorted(mass, wanted).clamp(max=values.shape[1] - 1))
    return ((edge - along) * 24 + 0.5).clamp(0, 1).unflatten(1, (1, PICTURE_SIZE, PICTURE_SIZE))


def cut(glyphs: GLYPH, dice: Dice) -> torch.Tensor:
    """A third to two thirds missing: on one side, or a hole in the middle."""
    side = _side_of_a_line(glyphs, dice, 0.35, 0.65)
    centre = dice.uniform(-0.2, 0.2, len(glyphs), 1, 1, 2)
    size = dice.uniform(0.42, 0.6, len(glyphs), 1, 1, 2)
    box = ((_grid() - centre).abs() < size).all(-1)[:, None].float()
    kept = torch.where(dice.uniform(0, 1, len(glyphs))[:, None, None, None] < 0.75, 1 - side, 1 - box)
    return compose(good(glyphs * kept, dice), dice)


def recoloured(glyphs: GLYPH, dice: Dice) -> torch.Tensor:
    """Other hues; what has none, tinted; now and then inverted."""
    count, alpha = len(glyphs), glyphs[:, 3:]
    angle = dice.uniform(1.1, 2 * math.pi - 1.1, count)
    cos, sin = angle.cos(), angle.sin() / math.sqrt(3)
    third = (1 - cos) / 3
    turned = torch.stack([third + cos, third - sin, third + sin], -1)
    matrix = torch.stack([turned, turned.roll(1, -1), turned.roll(2, -1)], -2)
    colours = torch.einsum("nij,njhw->nihw", matrix, glyphs[:, :3]).clamp(0, 1)
    changed = (colours - glyphs[:, :3]).abs().sum((1, 2, 3)) / alpha.sum((1, 2, 3)) / 3
    tint = dice.uniform(0, 1, count, 3)
    tint = (tint - tint.amin(1, keepdim=True)) / (tint.amax(1, keepdim=True) - tint.amin(1, keepdim=True) + 1e-6)
    tinted = glyphs[:, :3] * tint[:, :, None, None]
    inverted = alpha - glyphs[:, :3]
    chance = dice.uniform(0, 1, count)
    colours = torch.where(((changed < 0.12) | (chance < 0.2))[:, None, None, None], tinted, colours)
    colours = torch.where((chance > 0.85)[:, None, None, None], inverted, colours)
    return compose(good(torch.cat([colours, alpha], 1), dice), dice)


def deformed(glyphs: GLYPH, dice: Dice) -> torch.Tensor:
    """Swirled or strongly bent."""
    count = len(glyphs)
    bent = bend(glyphs, dice, dice.uniform(6, 12, count), dice.uniform(-0.3, 0.3, count), 2.0, 7)
    some = dice.below(2, count)[:, None, None, None]
    return compose(torch.where(some == 1, swirl(glyphs, dice), bent), dice)


def turned(glyphs: GLYPH, dice: Dice) -> torch.Tensor:
    count = len(glyphs)
    angle = dice.uniform(1.0, math.pi, count) * dice.sign(count)
    return compose(bend(glyphs, dice, dice.uniform(0, 1, count), angle), dice)


def shuffled(glyphs: GLYPH, dice: Dice) -> torch.Tensor:
    """Tiles in another order."""
    pictures = compose(good(glyphs, dice), dice)
    tiles = int(torch.tensor([2, 3, 4])[dice.below(3, 1)])
    side = PICTURE_SIZE // tiles
    parts = pictures.unflatten(2, (tiles, side)).unflatten(4, (tiles, side)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = dice.uniform(0, 1, len(glyphs), tiles * tiles).argsort(1)
    parts = parts[torch.arange(len(glyphs))[:, None], order].unflatten(1, (tiles, tiles))
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(pictures.shape)


def collages(glyphs: GLYPH, dice: Dice) -> torch.Tensor:
    """A part of one thing, the rest of another."""
    second = good(things()[dice.below(len(CHARACTERS), len(glyphs))], dice)
    glyphs = good(glyphs, dice)
    side = _side_of_a_line(torch.maximum(glyphs, second), dice, 0.38, 0.62)
    return compose(side * glyphs + (1 - side) * second, dice)


def mixtures(glyphs: GLYPH, dice: Dice) -> torch.Tensor:
    """Two things at once, everywhere."""
    second = things()[dice.below(len(CHARACTERS), len(glyphs))]
    share = dice.uniform(0.33, 0.67, len(glyphs))[:, None, None, None]
    return compose(good(share * glyphs + (1 - share) * second, dice), dice)


def strangers(glyphs: GLYPH, dice: Dice, first: int = 0, end: int = OTHERS_SEEN) -> torch.Tensor:
    """Other emoji, of those in these places."""
    return compose(good(others()[first + dice.below(end - first, len(glyphs))], dice), dice)


def nothing(glyphs: GLYPH, dice: Dice) -> torch.Tensor:
    """Soft noise of many sizes, or next to nothing at all."""
    count = len(glyphs)
    total = dice.uniform(0, 1, count, 3, 1, 1).expand(-1, -1, PICTURE_SIZE, PICTURE_SIZE)
    for cells in (3, 6, 12, 24):
        noise = F.interpolate(dice.normal(count, 3, cells, cells), PICTURE_SIZE, mode="bicubic")
        total = total + noise * dice.uniform(-0.1, 0.25, count).clamp(min=0)[:, None, None, None]
    return total.clamp(0, 1)


KINDS: dict[str, Callable[[GLYPH, Dice], torch.Tensor]] = {
    "blurred": blurred,
    "blobs": blobs,
    "molten": molten,
    "cut": cut,
    "recoloured": recoloured,
    "deformed": deformed,
    "turned": turned,
    "shuffled": shuffled,
    "collages": collages,
    "mixtures": mixtures,
    "strangers": strangers,
    "nothing": nothing,
}


def spoiled(kind: str, glyphs: GLYPH, dice: Dice) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawings spoiled in one way, and which of them really are: a turned ball is a ball."""
    pictures = KINDS[kind](glyphs, dice)
    return pictures, ~same(pictures, glyphs)


def same(pictures: torch.Tensor, glyphs: GLYPH) -> torch.Tensor:
    """Whether pictures differ from the glyphs, on their own background, too little to be anything else: [N]."""
    border = torch.cat([pictures[:, :, 0], pictures[:, :, -1], pictures[:, :, :, 0], pictures[:, :, :, -1]], -1)
    ground = border.median(-1).values[:, :, None, None]
    wanted = glyphs[:, :3] + ground * (1 - glyphs[:, 3:])
    small, small_wanted = F.avg_pool2d(pictures, 3), F.avg_pool2d(wanted, 3)
    alpha = F.avg_pool2d(glyphs[:, 3], 3)
    difference = (small - small_wanted).abs().mean(1)
    return (difference * alpha).sum((1, 2)) / alpha.sum((1, 2)) < DIFFERENT
