"""Image preprocessing: tiles for the vision tower, and one large image for the decoder.

Source: upstream's dynamic_preprocess with CLIPImageProcessor, mmdet's test pipeline (an OpenCV resize), UniPose's
transforms (a PIL resize). Images come in as `to_pixels` takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ...mulan.images.tiling import ImageLike, normalize_image, resize_image, split_into_tiles, to_pixels

FIXED = 2048  # OpenCV's weights of a uint8 resize: 11 bits


@dataclass(frozen=True)
class ImageSettings:
    """Sizes in pixels; means and deviations of values in 0..1. The defaults are the published 7B model's."""

    tower: int = 336  # the vision tower's square
    tiles: int = 4  # at most so many, the thumbnail not counted
    tower_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    tower_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    short: int = 800  # the decoders' image: its short side, unless its long side would exceed `long`
    long: int = 1333
    semantic_short: int = 512
    semantic_long: int = 2048
    multiple: int = 32  # the decoders' canvas
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def tower_images(image: ImageLike, settings: ImageSettings, aspect: str = "anyres") -> torch.Tensor:
    """Return the vision tower's views, float32 [N, 3, S, S], normalized; S is `settings.tower`.

    anyres: the image stretched over a grid of tiles, row by row, and where there are several a thumbnail last. pad: the
    image on a square of the mean color. square: its center crop, the short side filling the square. Raises ValueError
    for another `aspect`.
    """
    pil_image, size = Image.fromarray(to_pixels(image)), settings.tower
    if aspect == "anyres":
        tiles = split_into_tiles(pil_image, size, settings.tiles)
    elif aspect == "pad":
        side = max(pil_image.size)
        canvas = Image.new("RGB", (side, side), tuple(int(value * 255) for value in settings.tower_mean))
        canvas.paste(pil_image, ((side - pil_image.width) // 2, (side - pil_image.height) // 2))
        tiles = [resize_image(canvas, size, size, Image.Resampling.BICUBIC)]
    elif aspect == "square":
        tiles = [_center_square(pil_image, size)]
    else:
        raise ValueError(f"aspect must be anyres, pad or square, not {aspect!r}")
    return torch.stack([normalize_image(np.asarray(tile), settings.tower_mean, settings.tower_std) for tile in tiles])


def grounding_image(image: ImageLike, settings: ImageSettings, semantic: bool = False) -> torch.Tensor:
    """Return the grounding decoder's image, float32 [3, H, W], normalized, not padded.

    `semantic`: at the size of semantic segmentation.
    """
    pixels = to_pixels(image)
    height, width = pixels.shape[:2]
    short, long = (settings.semantic_short, settings.semantic_long) if semantic else (settings.short, settings.long)
    scale = min(long / max(height, width), short / min(height, width))
    pixels = fixed_point_resize(pixels, *(max(1, int(side * scale + 0.5)) for side in (height, width)))
    return normalize_image(pixels, settings.mean, settings.std)


def pose_image(image: ImageLike, settings: ImageSettings) -> torch.Tensor:
    """Return the pose decoder's image, float32 [3, H, W], normalized, not padded.

    Its long side is cut to whole pixels, where the grounding decoder's is rounded.
    """
    pil_image = Image.fromarray(to_pixels(image))
    low, high = min(pil_image.size), max(pil_image.size)
    short, long = settings.short, int(settings.short * high / low)
    if high / low * settings.short > settings.long:
        short = round(settings.long * low / high)
        long = int(short * high / low) if short else settings.long
    short = max(1, short)
    width, height = (short, long) if pil_image.width < pil_image.height else (long, short)
    return normalize_image(
        np.asarray(resize_image(pil_image, width, height, Image.Resampling.BILINEAR)), settings.mean, settings.std
    )


def pad_to_multiple(images: Sequence[torch.Tensor], multiple: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch images [3, H, W] -> [B, 3, H, W] with zeros right and below, and bool [B, H, W], True on the images.

    Height and width become multiples of `multiple`.
    """
    height, width = (-(-max(image.shape[side] for image in images) // multiple) * multiple for side in (1, 2))
    batch = images[0].new_zeros(len(images), 3, height, width)
    mask = torch.zeros(len(images), height, width, dtype=torch.bool, device=batch.device)
    for row, image in enumerate(images):
        batch[row, :, : image.shape[1], : image.shape[2]] = image
        mask[row, : image.shape[1], : image.shape[2]] = True
    return batch, mask


def fixed_point_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 [h, w, C] -> uint8 [height, width, C], bit for bit as OpenCV's INTER_LINEAR does.

    That is bilinear between pixel centers, without antialiasing, in fixed-point numbers.
    """
    top, bottom, over, under = _neighbors(pixels.shape[0], height)
    left, right, before, behind = _neighbors(pixels.shape[1], width)

    def row(y: np.ndarray) -> np.ndarray:
        first, second = pixels[y[:, None], left].astype(np.int32), pixels[y[:, None], right].astype(np.int32)
        return (first * before[:, None] + second * behind[:, None]) >> 4

    mixed = ((over[:, None, None] * row(top)) >> 16) + ((under[:, None, None] * row(bottom)) >> 16)
    return ((mixed + 2) >> 2).astype(np.uint8)


def _neighbors(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the two source pixels of each target pixel, at the edges twice the same, and their integer weights."""
    at = ((np.arange(target) + 0.5) * (1 / (target / size)) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    rest = at - first.astype(np.float32)
    first_weight, second_weight = (
        np.rint(part * np.float32(FIXED)).astype(np.int32) for part in (np.float32(1) - rest, rest)
    )
    return first.clip(0, size - 1), (first + 1).clip(0, size - 1), first_weight, second_weight


def _center_square(image: Image.Image, size: int) -> Image.Image:
    """Resize to a short side of `size`, cut the long side to whole pixels, and return the square in its center.

    The rest is never computed.
    """
    side = min(image.size)
    for axis in (0, 1):
        whole = int(size * image.size[axis] / side)
        first = (whole - size) // 2
        start, end = (edge * image.size[axis] / whole for edge in (first, first + size))
        if axis == 0:
            image = image.resize((size, image.height), Image.Resampling.BICUBIC, (start, 0, end, image.height))
        else:
            image = image.resize((image.width, size), Image.Resampling.BICUBIC, (0, start, image.width, end))
    return image
