"""Pictures as towers of fixed size see them: a grid of square tiles that fits the picture's shape, then the whole picture once more.

Source: upstream's ``dynamic_preprocess`` (OpenGVLab/InternVL), on PIL.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

Picture = Image.Image | np.ndarray | torch.Tensor


def as_pixels(picture: Picture) -> np.ndarray:
    """A PIL image, a uint8 array [H, W, 1..4] or [H, W], or a float tensor of that shape in 0..1 (ComfyUI's IMAGE of one frame) -> uint8 [H, W, 3].

    Alpha is dropped and grey repeated; ValueError for an empty picture, another shape, or values that are no numbers.
    """
    if isinstance(picture, Image.Image):
        pixels = np.asarray(picture.convert("RGB"))
    elif isinstance(picture, torch.Tensor) and picture.is_floating_point():
        values = picture.detach().float().cpu()
        if not torch.isfinite(values).all():
            raise ValueError("the picture holds values that are no numbers (NaN or infinite)")
        pixels = (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    else:
        pixels = np.asarray(picture.cpu() if isinstance(picture, torch.Tensor) else picture)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or not 1 <= pixels.shape[2] <= 4 or 0 in pixels.shape:
        raise ValueError(
            f"a picture must have the shape [height, width, 1 to 4 channels], uint8 or float in 0..1; "
            f"this one is {list(pixels.shape)}, {pixels.dtype}"
        )
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, 2)


def choose_tiles(width: int, height: int, size: int, most: int) -> tuple[int, int]:
    """-> (columns, rows) of the grid of at most `most` tiles whose shape is nearest to the picture's.

    On an exact tie a larger grid wins where the picture has more than half of the grid's pixels.
    """
    grids = sorted(
        ((columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)),
        key=lambda grid: grid[0] * grid[1],
    )
    best, nearest = grids[0], float("inf")
    for columns, rows in grids:
        distance = abs(width / height - columns / rows)
        if distance < nearest or (distance == nearest and width * height > 0.5 * size * size * columns * rows):
            best, nearest = (columns, rows), distance
    return best


def tiled(image: Image.Image, size: int, most: int) -> list[Image.Image]:
    """Squares of `size` pixels: the picture stretched over a grid of at most `most`, row by row, and where there are several the whole once more."""
    columns, rows = choose_tiles(*image.size, size, most)
    whole = resized(image, columns * size, rows * size, Image.Resampling.BICUBIC)
    tiles = [
        whole.crop((x * size, y * size, (x + 1) * size, (y + 1) * size)) for y in range(rows) for x in range(columns)
    ]
    return tiles if len(tiles) == 1 else [*tiles, resized(image, size, size, Image.Resampling.BICUBIC)]


def resized(image: Image.Image, width: int, height: int, how: Image.Resampling) -> Image.Image:
    """Across, then down: one call leaves the order to Pillow, whose versions do not agree, and each pass rounds to whole numbers."""
    return image.resize((width, image.height), how).resize((width, height), how)


def normalised(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 [H, W, 3] -> float32 [3, H, W]."""
    values = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()
    return (values - torch.tensor(mean).view(3, 1, 1) * 255) / (torch.tensor(std).view(3, 1, 1) * 255)
