"""Images as InternVL's tower takes them: 8 bits, a bicubic resize by PIL, ImageNet's mean and standard deviation.

Source: upstream's two transforms on torchvision (OpenGVLab/InternVL, clip_benchmark): that of classification crops,
that of retrieval squeezes.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..images.tiling import ImageLike, resize_image, to_pixels

MAX_RATIO = 2048  # of an image's sides: what lies further from the center is cut before the image is enlarged
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FRAMINGS = ("crop", "whole")  # the center square of the image; all of it, squeezed into the square


def check_framing(framing: str) -> None:
    """Raise ValueError for one that is not of `FRAMINGS`."""
    if framing not in FRAMINGS:
        raise ValueError(f"unknown framing {framing!r}: expected one of {', '.join(FRAMINGS)}")


def preprocess(image: ImageLike, size: int, framing: str) -> torch.Tensor:
    """Return an image, as `to_pixels` takes it, as [3, size, size] float32, normalized.

    Raises ValueError for what is no image.
    """
    pil_image = Image.fromarray(to_pixels(image))
    if framing != "whole":
        pil_image = _cut_ends(pil_image)
    width, height = (size, size) if framing == "whole" else _fit_outside(*pil_image.size, size)
    pil_image = resize_image(pil_image, width, height, Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    square = np.array(pil_image.crop((left, top, left + size, top + size)))
    pixels = torch.from_numpy(square).permute(2, 0, 1).float().div(255)
    return pixels.sub(torch.tensor(MEAN)[:, None, None]).div(torch.tensor(STD)[:, None, None]).contiguous()


def _cut_ends(image: Image.Image) -> Image.Image:
    most = MAX_RATIO * min(image.size)
    left, top = (max(0, (side - most) // 2) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top)) if left or top else image


def _fit_outside(width: int, height: int, size: int) -> tuple[int, int]:
    """Return the image's width and height when the shorter one is `size`."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size
