"""Pictures of a folder, one after another: nothing is read before it is needed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
_SIXTEEN_BITS = (
    "I",
    "I;16",
    "I;16L",
    "I;16B",
    "I;16N",
)  # Pillow's modes of PNGs and TIFFs with 16 bits a pixel, which it would cut off at 255


class UnreadableImageError(ValueError):
    """The message says why, without the file's name."""


def list_images(folder: Path) -> list[Path]:
    """The pictures in a folder, not in those below it, in the order people count: 2.png before 10.png. Raises ValueError where there is none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    if not files:
        raise ValueError(
            f"there is no picture in {folder} ({', '.join(sorted(SUFFIXES))}); folders below it are not searched"
        )
    return sorted(files, key=lambda path: (_counted(path.name), path.name))


def read_image(path: Path) -> torch.Tensor:
    """[H, W, 3] float32 0..1: upright as the camera held it, the first frame of an animation, without transparency, as Load Image gives it.

    Raises UnreadablePicture.
    """
    try:
        with Image.open(path) as picture:
            sixteen_bits = picture.mode in _SIXTEEN_BITS
            picture = ImageOps.exif_transpose(picture)
            pixels = np.asarray(picture if sixteen_bits else picture.convert("RGB"), dtype=np.float32)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        raise UnreadableImageError(_reason(path, error)) from error
    pixels = torch.from_numpy(pixels / (65535 if sixteen_bits else 255))
    return pixels[..., None].expand(-1, -1, 3) if sixteen_bits else pixels


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is empty" if path.stat().st_size == 0 else "it is no picture that can be read"
    return str(error) or type(error).__name__


def _counted(name: str) -> list[tuple]:
    """Runs of digits as numbers, all else as small letters."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name.casefold()) if part
    ]
