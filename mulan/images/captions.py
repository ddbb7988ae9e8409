"""Captions beside images: a .txt of the same name, as trainers read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..boundary.files import write_text
from ..boundary.interrupts import interruptible

SUFFIX = ".txt"


def caption_file(image: Path) -> Path:
    """Return where an image's caption stands."""
    return image.with_suffix(SUFFIX)


def one_line(caption: str, trigger: str = "") -> str:
    """Return a caption as one line, behind the trigger words; empty where it says nothing."""
    text, words = " ".join(caption.split()), " ".join(trigger.split())
    return f"{words}, {text}" if words and text else text


def save_captions(images: Sequence[Path], captions: Sequence[str], overwrite: bool) -> list[Path]:
    """Write a caption beside each image, each file whole or not at all -> the files that were written.

    Empty captions, and without `overwrite` those of images that have one, are left out. Raises ValueError where two
    images would share a file, before any is written.
    """
    owners: dict[Path, Path] = {}
    for image in images:
        other = owners.setdefault(caption_file(image), image)
        if other != image:
            raise ValueError(
                f"{other.name} and {image.name} would share {caption_file(image).name}. Rename one of them"
            )
    written = []
    for image, caption in interruptible(zip(images, captions, strict=True)):
        file = caption_file(image)
        if caption and (overwrite or not file.exists()):
            written.append(write_text(file, caption + "\n"))
    return written
