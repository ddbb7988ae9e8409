"""Training data: a folder of images with captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..images.captions import caption_file, check_language
from ..images.image_files import SUFFIXES, UnreadableImageError, opened_image

CAPTION_LIST = "metadata.jsonl"
_ORIENTATION = 0x0112  # EXIF
_ON_ITS_SIDE = (5, 6, 7, 8)
Size = tuple[int, int]  # height and width


class CaptionedImages:
    """The images of a folder and its subfolders, and their captions.

    An image's caption is in metadata.jsonl ({"file_name", "text"} a line) or in the .txt of the same name; captions in
    other `languages` are in .de.txt, .ja.txt and so on, as Save Captions writes them. `captions` has those of all
    images, then those in the first other language, and so on. Raises ValueError where the folder or a caption is
    missing, or there is no image.
    """

    def __init__(self, folder: Path | str, languages: Sequence[str] = ()):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is not a folder: expected a folder of images with captions")
        self.paths = sorted(
            path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.name[0] != "."
        )
        if not self.paths:
            raise ValueError(f"{self.folder} contains no image ({', '.join(sorted(SUFFIXES))})")
        listed = listed_captions(self.folder)
        self.captions = self._checked([listed.get(path, [""])[-1] or text_beside(path) for path in self.paths])
        for code in map(check_language, languages):
            self.captions += self._checked([text_beside(path, code) for path in self.paths], code)

    def _checked(self, captions: list[str], language: str = "") -> list[str]:
        bare = [path for path, caption in zip(self.paths, captions, strict=True) if not caption]
        if bare:
            some = ", ".join(str(path.relative_to(self.folder)) for path in bare[:3]) + (
                ", ..." if len(bare) > 3 else ""
            )
            where = f"a .{language}.txt" if language else "a .txt"
            raise ValueError(
                f"{len(bare)} of {len(self.paths)} images in {self.folder} have no caption ({some}): "
                f"write it into {where} of the same name"
                + ("" if language else f' or into {CAPTION_LIST} as {{"file_name": ..., "text": ...}}')
            )
        return captions

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, index: int) -> str:
        """Return a text that changes with an image's file, not with its captions."""
        path = self.paths[index]
        stat = path.stat()
        return f"{path.relative_to(self.folder)} {stat.st_size} {stat.st_mtime_ns}"


def listed_captions(folder: Path) -> dict[Path, list[str]]:
    """Return the captions in a folder's metadata.jsonl by image, in the file's order; none where there is no such file.

    Raises ValueError that names a line of another form.
    """
    path = folder / CAPTION_LIST
    captions: dict[Path, list[str]] = {}
    for line_number, line in enumerate(read_text(path).split("\n") if path.is_file() else (), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            captions.setdefault(folder / entry["file_name"], []).append(entry["text"].strip())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f'{path}, line {line_number}: expected {{"file_name": ..., "text": ...}}, not {line[:80]!r}'
            ) from error
    return captions


def text_beside(path: Path, language: str = "") -> str:
    """Return the caption in the .txt of an image's name, or in a language's, empty where there is none."""
    text = caption_file(path, language)
    return read_text(text).strip() if text.is_file() else ""


def read_text(path: Path) -> str:
    """Read a UTF-8 text. Raises ValueError for another encoding."""
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows editors put a mark before the text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error


def image_size(path: Path) -> Size:
    """Return height and width of an image, upright, from its header. Raises ValueError for other files."""
    try:
        with opened_image(path) as file:
            width, height = file.size
            turned = file.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    except UnreadableImageError as error:
        raise _unreadable(path, error) from error
    return (width, height) if turned else (height, width)


def load_image(path: Path, size: Size) -> torch.Tensor:
    """Read an image, float [3, *size] in -1..1: resized until it covers the size, the center cut out.

    Transparent parts become white. Raises ValueError for other files.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with opened_image(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGBA")
    except UnreadableImageError as error:
        raise _unreadable(path, error) from error
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read as an image ({error}): repair or remove it")
