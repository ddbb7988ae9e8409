"""Dynamic tiling: a grid of square tiles that fits the image's shape, plus a thumbnail.

Source: upstream's ``dynamic_preprocess`` (OpenGVLab/InternVL), on PIL.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..boundary.limits import MAX_IMAGE_PIXELS

BLOCK = 2**24  # values of a tensor that become bytes at a time

ImageLike = Image.Image | np.ndarray | torch.Tensor


def to_pixels(image: ImageLike) -> np.ndarray:
    """Convert an image to uint8 [H, W, 3].

    It is a PIL image, a uint8 array [H, W, 1..4] or [H, W], or a float tensor of that shape in 0..1 (one frame of
    ComfyUI's IMAGE). Alpha is dropped, gray is repeated. Raises ValueError for an empty image, another shape, NaN or
    infinity.
    """
    if isinstance(image, Image.Image):
        pixels = np.asarray(image.convert("RGB"))
    elif isinstance(image, torch.Tensor) and image.is_floating_point():
        pixels = _bytes(image.detach())
    else:
        pixels = np.asarray(image.cpu() if isinstance(image, torch.Tensor) else image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or not 1 <= pixels.shape[2] <= 4 or 0 in pixels.shape:
        raise ValueError(
            f"an image must have the shape [height, width, 1 to 4 channels], uint8 or float in 0..1; "
            f"this one is {list(pixels.shape)}, {pixels.dtype}"
        )
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, 2)


def _bytes(image: torch.Tensor) -> np.ndarray:
    """Convert a float tensor to uint8, some rows at a time."""
    pixels = np.empty(tuple(image.shape), np.uint8)
    rows = max(1, BLOCK // max(1, image[:1].numel())) if image.ndim else 1
    for first in range(0, len(image) if image.ndim else 0, rows):
        values = image[first : first + rows].float().cpu()
        if not torch.isfinite(values).all():
            raise ValueError("the image contains values that are no numbers (NaN or infinite)")
        pixels[first : first + rows] = (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return pixels


def choose_tile_grid(width: int, height: int, size: int, max_tiles: int) -> tuple[int, int]:
    """Return (columns, rows) of the grid of at most `max_tiles` tiles whose shape is nearest to the image's.

    On an exact tie a larger grid wins where the image has more than half of the grid's pixels. Raises ValueError where
    there is to be no tile.
    """
    if max_tiles < 1:
        raise ValueError(f"tiles must be at least 1, not {max_tiles}")
    grids = sorted(
        ((columns, rows) for columns in range(1, max_tiles + 1) for rows in range(1, max_tiles // columns + 1)),
        key=lambda grid: grid[0] * grid[1],
    )
    best, nearest = grids[0], float("inf")
    for columns, rows in grids:
        distance = abs(width / height - columns / rows)
        if distance < nearest or (distance == nearest and width * height > 0.5 * size * size * columns * rows):
            best, nearest = (columns, rows), distance
    return best


def count_tiles(width: int, height: int, size: int, max_tiles: int) -> int:
    """Return how many images `split_into_tiles` makes of one."""
    columns, rows = choose_tile_grid(width, height, size, max_tiles)
    return columns * rows if columns * rows == 1 else columns * rows + 1


def split_into_tiles(image: Image.Image, size: int, max_tiles: int) -> list[Image.Image]:
    """Stretch the image over a grid of at most `max_tiles` squares of `size` pixels, and cut it into them, row by row.

    Behind several tiles comes a thumbnail, the whole image as one more.
    """
    columns, rows = choose_tile_grid(*image.size, size, max_tiles)
    whole = resize_image(image, columns * size, rows * size, Image.Resampling.BICUBIC)
    tiles = [
        whole.crop((x * size, y * size, (x + 1) * size, (y + 1) * size)) for y in range(rows) for x in range(columns)
    ]
    return tiles if len(tiles) == 1 else [*tiles, resize_image(image, size, size, Image.Resampling.BICUBIC)]


def resize_image(image: Image.Image, width: int, height: int, resampling: Image.Resampling) -> Image.Image:
    """Resize across, then down.

    One call would leave the order to Pillow, whose versions differ, and each pass rounds to bytes. An image that is
    nearly a line goes the other way where it would grow too large between.
    """
    if width * image.height > MAX_IMAGE_PIXELS:
        return image.resize((image.width, height), resampling).resize((width, height), resampling)
    return image.resize((width, image.height), resampling).resize((width, height), resampling)


def normalize_image(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Normalize uint8 [H, W, 3] by mean and std of 0..1 -> float32 [3, H, W]."""
    values = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()
    return (values - torch.tensor(mean).view(3, 1, 1) * 255) / (torch.tensor(std).view(3, 1, 1) * 255)
