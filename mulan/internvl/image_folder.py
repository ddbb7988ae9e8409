"""Embeddings of all images in a folder, which are never in memory together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import comfy.model_management
import comfy.utils
import torch

from ..images.image_files import UnreadableImageError, list_images, read_image
from .embedding_cache import EmbeddingCache, cache_path

if TYPE_CHECKING:
    from .internvl_model import LoadedInternVL

BATCH_SIZE = 256  # files in one call of the model, whose work is lost where the user stops it


class ImageFolder(NamedTuple):
    """A folder, and its image files in the order people count."""

    path: Path
    files: list[Path]


class UnreadableImage(NamedTuple):
    """A file that could not be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class FolderEmbeddings:
    """The images that could be read, in the folder's order, their `vectors` [N, E], and the others with the reason."""

    files: list[Path]
    vectors: torch.Tensor
    unreadable: list[UnreadableImage]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(display_name, self.files))


def open_image_folder(path: Path) -> ImageFolder:
    """List the images of a folder. Raises ValueError where it has none."""
    return ImageFolder(path, list_images(path))


def embed_folder(loaded: LoadedInternVL, folder: ImageFolder, framing: str, cache_folder: Path) -> FolderEmbeddings:
    """Embed what is new in the folder, and keep the vectors in a file in `cache_folder`, also where it is stopped or
    fails on the way.

    Shows progress. Raises ValueError where no image can be read.
    """
    files = folder.files
    owner = f"{loaded.identity} {framing}"
    cache = EmbeddingCache(cache_path(cache_folder, folder.path, loaded.mode, framing, owner), owner)
    keys: dict[Path, str] = {}
    reasons: dict[Path, str] = {}
    bar = comfy.utils.ProgressBar(len(files))
    try:
        for start in range(0, len(files), BATCH_SIZE):
            new: dict[str, Path] = {}
            batch = files[start : start + BATCH_SIZE]
            for file in batch:
                comfy.model_management.throw_exception_if_processing_interrupted()
                try:
                    keys[file] = cache.key(file)
                except OSError as error:
                    reasons[file] = error.strerror or str(error)
                    continue
                if keys[file] not in cache:
                    new.setdefault(keys[file], file)
            images = _LazyImages(list(new.values()), {})
            done = min(start + BATCH_SIZE, len(files))
            if new:
                progress = _PartOfBar(bar, start, done, loaded.steps(len(new)))
                vectors = loaded.embed_images(images, framing, progress)
                for (key, file), vector in zip(new.items(), vectors, strict=True):
                    if file not in images.reasons:
                        cache[key] = vector
            bad = {key: images.reasons[file] for key, file in new.items() if file in images.reasons}
            reasons |= {file: bad[keys[file]] for file in batch if keys.get(file) in bad}
            bar.update_absolute(done)
        keys = {file: key for file, key in keys.items() if file not in reasons}
        cache.keep_only(keys)
    finally:
        cache.save()
    unreadable = [UnreadableImage(display_name(file), reasons[file]) for file in files if file in reasons]
    if not keys:
        raise ValueError(
            f"none of the {len(files)} images in {folder.path} can be read; {unreadable[0].name}: "
            f"{unreadable[0].reason}"
        )
    return FolderEmbeddings(list(keys), torch.stack([cache[key] for key in keys.values()]), unreadable)


def display_name(file: Path) -> str:
    """Return the file's name, with a ? for what is no text: not every file system keeps to Unicode."""
    return file.name.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class _LazyImages(Sequence):
    """The images of files, each read when it is asked for.

    One that cannot be read is a black pixel, and `reasons` says why.
    """

    files: list[Path]
    reasons: dict[Path, str]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        file = self.files[index]
        try:
            return read_image(file)
        except UnreadableImageError as error:
            self.reasons[file] = str(error)
            return torch.zeros(1, 1, 3)


class _PartOfBar:
    """A progress bar's part from `first` to `last`, for a call of so many steps."""

    def __init__(self, bar: comfy.utils.ProgressBar, first: int, last: int, steps: int):
        self._bar, self._first, self._last, self._steps = bar, first, last, steps
        self._done = 0

    def update(self, value: int, /) -> None:
        self._done += value
        self._bar.update_absolute(self._first + (self._last - self._first) * self._done // self._steps)
