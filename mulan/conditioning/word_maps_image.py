"""The maps of a prompt's words as heat over the image: one picture with a cell for each word."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..images.text_drawing import TextRenderer
from ..images.tiling import to_pixels

CELL, LARGEST_CELL = 160, 256  # pixels of a cell's longer side: at least, at most
COLUMNS = 6
GAP, TEXT, PAPER, INK, FAINT = 8, 15, (255, 255, 255), (28, 28, 32), (110, 110, 118)


def draw_maps(
    image: torch.Tensor, masks: torch.Tensor, words: Sequence[str], notes: Sequence[str], renderer: TextRenderer
) -> torch.Tensor:
    """Draw an image [H, W, 3], then each word's mask [N, H, W] of 0..1 as heat over it -> float32 [h, w, 3].

    Over each cell stands its word, and the note on it. The size depends on the image's and on N alone.
    """
    pixels = to_pixels(image)
    height, width = pixels.shape[:2]
    scale = min(max(CELL, height, width), LARGEST_CELL) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    cells = [picture, *(_heated(picture, mask) for mask in masks)]
    columns = min(COLUMNS, len(cells))
    step = max(size[0], CELL // 2) + GAP, size[1] + 2 * TEXT + 2 * GAP
    sheet = Image.new("RGB", (GAP + columns * step[0], GAP + math.ceil(len(cells) / columns) * step[1]), PAPER)
    for index, (cell, word, note) in enumerate(zip(cells, ["", *words], ["", *notes], strict=True)):
        left, top = GAP + index % columns * step[0], GAP + index // columns * step[1]
        of_note = renderer.width(note, TEXT) + GAP if note else 0
        word = renderer.shorten(word, TEXT, step[0] - GAP - of_note)
        renderer.draw(sheet, left, top + TEXT + 2, word, TEXT, INK)
        renderer.draw(sheet, left + step[0] - of_note, top + TEXT + 2, note, TEXT, FAINT)
        sheet.paste(cell, (left, top + 2 * TEXT))
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)


def _heated(picture: Image.Image, mask: torch.Tensor) -> Image.Image:
    """Draw a mask over the picture in gray: black, red, yellow, white."""
    heat = Image.fromarray((mask.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    share = np.asarray(heat.resize(picture.size, Image.Resampling.BICUBIC), dtype=np.float32)[..., None] / 255
    gray = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] * 0.7
    color = np.clip(share * 3 - np.array([0.0, 1.0, 2.0], dtype=np.float32), 0, 1) * 255
    opacity = 0.8 * share
    return Image.fromarray((gray * (1 - opacity) + color * opacity).round().astype(np.uint8))
