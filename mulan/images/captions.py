"""Captions beside images: a .txt of the same name, as trainers read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..boundary.files import write_text
from ..boundary.interrupts import interruptible

SUFFIX = ".txt"
_LANGUAGE = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")
_LONGEST = 35  # characters, as in BCP 47


def caption_file(image: Path, language: str = "") -> Path:
    """Return where an image's caption stands: 1.txt beside 1.png, or 1.de.txt of a language."""
    return image.with_suffix(f".{language}{SUFFIX}" if language else SUFFIX)


def check_language(language: str) -> str:
    """Return a language's code without outer space; empty for none. Raise ValueError for what is no code."""
    code = language.strip()
    if code and not (_LANGUAGE.fullmatch(code) and len(code) <= _LONGEST):
        raise ValueError(f"{code[:40]!r} is not the code of a language, such as de or zh-TW")
    return code


def one_line(caption: str, trigger: str = "") -> str:
    """Return a caption as one line, behind the trigger words; empty where it says nothing."""
    text, words = " ".join(caption.split()), " ".join(trigger.split())
    return f"{words}, {text}" if words and text else text


def save_captions(images: Sequence[Path], captions: Sequence[str], overwrite: bool, language: str = "") -> list[Path]:
    """Write a caption beside each image, each file whole or not at all -> the files that were written.

    Empty captions, and without `overwrite` those of images that have one, are left out. Raises ValueError where two
    images would share a file, before any is written.
    """
    owners: dict[Path, Path] = {}
    for image in images:
        other = owners.setdefault(caption_file(image, language), image)
        if other != image:
            raise ValueError(
                f"{other.name} and {image.name} would share {caption_file(image, language).name}. Rename one of them"
            )
    written = []
    for image, caption in interruptible(zip(images, captions, strict=True)):
        file = caption_file(image, language)
        if caption and (overwrite or not file.exists()):
            written.append(write_text(file, caption + "\n"))
    return written
