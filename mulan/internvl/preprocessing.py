"""Pictures as InternVL's tower wants them: 8 bits, a bicubic resize by PIL, ImageNet's mean and deviation.

Source: upstream's two transforms on torchvision (OpenGVLab/InternVL, clip_benchmark): that of classification crops, that of retrieval squeezes.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..images.tiling import Picture, as_pixels, resized

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FRAMINGS = ("crop", "whole")  # the middle square of the picture; all of it, squeezed into the square


def check_framing(framing: str) -> None:
    """Raises ValueError for one that is not of `FRAMINGS`."""
    if framing not in FRAMINGS:
        raise ValueError(f"the framing is {framing!r}, expected is one of {', '.join(FRAMINGS)}")


def prepare(picture: Picture, size: int, framing: str) -> torch.Tensor:
    """A picture, as `as_pixels` takes it, -> [3, size, size] float32, normed. Raises ValueError for what is none."""
    image = Image.fromarray(as_pixels(picture))
    width, height = (size, size) if framing == "whole" else _around(*image.size, size)
    image = resized(image, width, height, Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = (
        torch.from_numpy(np.array(image.crop((left, top, left + size, top + size)))).permute(2, 0, 1).float().div(255)
    )
    return pixels.sub(torch.tensor(MEAN)[:, None, None]).div(torch.tensor(STD)[:, None, None]).contiguous()


def _around(width: int, height: int, size: int) -> tuple[int, int]:
    """The picture's sides when the shorter one is `size`."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size
