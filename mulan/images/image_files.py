"""Images of a folder, one after another: nothing is read before it is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..boundary.interrupts import interruptible
from ..boundary.limits import MAX_IMAGE_PIXELS
from ..boundary.texts import whole_characters

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
# Pillow's modes of PNGs and TIFFs with 16 bits a pixel, which its `convert` would cut off at 255
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class UnreadableImageError(ValueError):
    """An image file that cannot be read. The message says why, without the file's name."""


def list_images(folder: Path) -> list[Path]:
    """List the images in a folder, not in its subfolders, in the order people count: 2.png before 10.png.

    Pipes, devices and links to themselves are none. Raises ValueError where there is no image.
    """
    if not folder.is_dir():
        raise ValueError(f"folder not found: {folder}")
    files = [
        path
        for path in interruptible(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    if not files:
        raise ValueError(f"no image in {folder} ({', '.join(sorted(SUFFIXES))}); subfolders are not searched")
    return sorted(files, key=lambda path: (_natural_key(path.name), path.name))


def read_image(path: Path) -> torch.Tensor:
    """Read an image [H, W, 3] float32 0..1, as Load Image does.

    It is upright as the camera held it, without transparency, of an animation the first frame. Raises
    UnreadableImageError, also for an image with more pixels than are read, before it is decoded.
    """
    with opened_image(path) as image:
        sixteen_bits = image.mode in _SIXTEEN_BITS
        image = ImageOps.exif_transpose(image)
        pixels = np.asarray(image if sixteen_bits else image.convert("RGB"), dtype=np.float32)
    pixels = torch.from_numpy(pixels).div_(65535 if sixteen_bits else 255)
    return pixels[..., None].expand(-1, -1, 3) if sixteen_bits else pixels


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file, of which the header is read; what the block does with it may read the rest.

    Raises UnreadableImageError for whatever a broken file leads Pillow to, also for an image with more pixels than are
    read, before it is decoded.
    """
    if not path.is_file():  # a pipe would wait for someone to write
        raise UnreadableImageError("it is not a file")
    Image.init()
    try:
        with Image.open(path, formats=[name for name in Image.OPEN if name != "EPS"]) as image:  # EPS is a program
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise UnreadableImageError(_too_large(f"{image.width} x {image.height}"))
            yield image
    except (MemoryError, UnreadableImageError):
        raise
    except Exception as error:  # Pillow's readers raise whatever they meet
        raise UnreadableImageError(_reason(path, error)) from error


def _too_large(pixels: str) -> str:
    return f"it has {pixels} pixels, and at most {MAX_IMAGE_PIXELS} are read. Shrink it"


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit, where it is the lower one
        return _too_large(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)}")
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is empty" if path.stat().st_size == 0 else "it is not an image that can be read"
    return whole_characters(str(error))[0] or type(error).__name__


def _natural_key(name: str) -> list[tuple]:
    """Return runs of digits as numbers, all else in lower case."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name.casefold()) if part
    ]
