"""A picture as VisionLLM v2 sees it: tiles for the vision tower, and one large picture for the decoder.

Source: upstream's dynamic_preprocess with CLIPImageProcessor, mmdet's test pipeline (an OpenCV resize), UniPose's transforms (a PIL resize).
Pictures come in as `as_pixels` takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ...mulan.images.tiling import Picture, as_pixels, normalised, resized, tiled

FIXED = 2048  # OpenCV's weights of a uint8 resize: 11 bits


@dataclass(frozen=True)
class PictureSettings:
    """Sizes in pixels; means and deviations of values in 0..1. The defaults are the published 7B model's."""

    tower: int = 336  # the vision tower's square
    tiles: int = 4  # at most so many, the thumbnail not counted
    tower_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    tower_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    short: int = 800  # the decoders' picture: its short side, unless its long side would exceed `long`
    long: int = 1333
    semantic_short: int = 512
    semantic_long: int = 2048
    multiple: int = 32  # the decoders' canvas
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def tower_pictures(picture: Picture, settings: PictureSettings, aspect: str = "anyres") -> torch.Tensor:
    """-> float32 [N, 3, S, S], normalised. S is `settings.tower`.

    anyres: the whole picture stretched over a grid of tiles, row by row, and where there are several the whole picture once more, last.
    pad: the whole picture on a square of the mean colour. square: its middle, the short side filling the square.
    """
    image, size = Image.fromarray(as_pixels(picture)), settings.tower
    if aspect == "anyres":
        tiles = tiled(image, size, settings.tiles)
    elif aspect == "pad":
        side = max(image.size)
        canvas = Image.new("RGB", (side, side), tuple(int(value * 255) for value in settings.tower_mean))
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        tiles = [resized(canvas, size, size, Image.Resampling.BICUBIC)]
    elif aspect == "square":
        tiles = [_middle(image, size)]
    else:
        raise ValueError(f"the vision tower takes pictures as anyres, pad or square, not as {aspect!r}")
    return torch.stack([normalised(np.asarray(tile), settings.tower_mean, settings.tower_std) for tile in tiles])


def grounding_picture(picture: Picture, settings: PictureSettings, semantic: bool = False) -> torch.Tensor:
    """-> float32 [3, H, W] for the grounding decoder, normalised, not padded; `semantic`: at the size of semantic segmentation."""
    pixels = as_pixels(picture)
    height, width = pixels.shape[:2]
    short, long = (settings.semantic_short, settings.semantic_long) if semantic else (settings.short, settings.long)
    scale = min(long / max(height, width), short / min(height, width))
    pixels = fixed_point_resize(pixels, *(max(1, int(side * scale + 0.5)) for side in (height, width)))
    return normalised(pixels, settings.mean, settings.std)


def pose_picture(picture: Picture, settings: PictureSettings) -> torch.Tensor:
    """-> float32 [3, H, W] for the pose decoder, normalised, not padded. Its long side is cut to whole pixels, the grounding decoder's rounded."""
    image = Image.fromarray(as_pixels(picture))
    low, high = min(image.size), max(image.size)
    short, long = settings.short, int(settings.short * high / low)
    if high / low * settings.short > settings.long:
        short = round(settings.long * low / high)
        long = int(short * high / low) if short else settings.long
    short = max(1, short)
    width, height = (short, long) if image.width < image.height else (long, short)
    return normalised(np.asarray(resized(image, width, height, Image.Resampling.BILINEAR)), settings.mean, settings.std)


def padded(pictures: Sequence[torch.Tensor], multiple: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[3, H, W] each -> (batch [B, 3, H, W], zeros right and below up to a multiple of `multiple`; bool [B, H, W], True on the pictures)."""
    height, width = (-(-max(picture.shape[side] for picture in pictures) // multiple) * multiple for side in (1, 2))
    batch = pictures[0].new_zeros(len(pictures), 3, height, width)
    mask = torch.zeros(len(pictures), height, width, dtype=torch.bool, device=batch.device)
    for row, picture in enumerate(pictures):
        batch[row, :, : picture.shape[1], : picture.shape[2]] = picture
        mask[row, : picture.shape[1], : picture.shape[2]] = True
    return batch, mask


def fixed_point_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, C] -> uint8 [height, width, C]: bilinear, pixel centres, no antialiasing, bit for bit OpenCV's INTER_LINEAR."""
    top, bottom, over, under = _neighbours(pixels.shape[0], height)
    left, right, before, behind = _neighbours(pixels.shape[1], width)

    def row(y: np.ndarray) -> np.ndarray:
        first, second = pixels[y[:, None], left].astype(np.int32), pixels[y[:, None], right].astype(np.int32)
        return (first * before[:, None] + second * behind[:, None]) >> 4

    mixed = ((over[:, None, None] * row(top)) >> 16) + ((under[:, None, None] * row(bottom)) >> 16)
    return ((mixed + 2) >> 2).astype(np.uint8)


def _neighbours(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each wanted pixel the two source pixels, at the edges twice the same, and their integer weights."""
    at = ((np.arange(wanted) + 0.5) * (1 / (wanted / size)) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    rest = at - first.astype(np.float32)
    weights = [np.rint(part * np.float32(FIXED)).astype(np.int32) for part in (np.float32(1) - rest, rest)]
    return first.clip(0, size - 1), (first + 1).clip(0, size - 1), *weights


def _middle(image: Image.Image, size: int) -> Image.Image:
    """The image with its short side at `size`, its long side cut to whole pixels, and of that the middle square; the rest is never made."""
    side = min(image.size)
    for axis in (0, 1):
        whole = int(size * image.size[axis] / side)
        first = (whole - size) // 2
        box = [0, 0, *image.size]
        box[axis], box[axis + 2] = (edge * image.size[axis] / whole for edge in (first, first + size))
        image = image.resize(
            (size, image.height) if axis == 0 else (image.width, size), Image.Resampling.BICUBIC, tuple(box)
        )
    return image
