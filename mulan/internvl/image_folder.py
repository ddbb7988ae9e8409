"""Embeddings of all pictures in a folder, which never are in memory together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import comfy.model_management
import comfy.utils
import torch

from ..images.image_files import UnreadableImageError, list_images, read_image
from .embedding_cache import StoredVectors, stored_path

if TYPE_CHECKING:
    from .internvl_model import LoadedInternVL

AT_ONCE = 256  # files in one call of the model, whose work is lost where the user stops it


class Unreadable(NamedTuple):
    name: str
    reason: str


@dataclass(frozen=True)
class FolderEmbeddings:
    """The pictures that could be read, in the folder's order, `vectors` [N, E] of them, and the others with the reason."""

    files: list[Path]
    vectors: torch.Tensor
    unreadable: list[Unreadable]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(name_of, self.files))


def embed_folder(loaded: LoadedInternVL, folder: Path, framing: str, kept_in: Path) -> FolderEmbeddings:
    """Embeds what is new in the folder and keeps the vectors in a file in `kept_in`, also where it is stopped or fails on the way.

    Shows progress. Raises ValueError where the folder has no picture, or none that can be read.
    """
    files = list_images(folder)
    owner = f"{loaded.identity} {framing}"
    stored = StoredVectors(stored_path(kept_in, folder, loaded.mode, framing, owner), owner)
    keys: dict[Path, str] = {}
    reasons: dict[Path, str] = {}
    bar = comfy.utils.ProgressBar(len(files))
    try:
        for start in range(0, len(files), AT_ONCE):
            new: dict[str, Path] = {}
            some = files[start : start + AT_ONCE]
            for file in some:
                comfy.model_management.throw_exception_if_processing_interrupted()
                try:
                    keys[file] = stored.key(file)
                except OSError as error:
                    reasons[file] = error.strerror or str(error)
                    continue
                if keys[file] not in stored:
                    new.setdefault(keys[file], file)
            pictures = _Pictures(list(new.values()), {})
            done = min(start + AT_ONCE, len(files))
            if new:
                vectors = loaded.embed_pictures(pictures, framing, _Share(bar, start, done, loaded.steps(len(new))))
                for (key, file), vector in zip(new.items(), vectors):
                    if file not in pictures.reasons:
                        stored[key] = vector
            bad = {key: pictures.reasons[file] for key, file in new.items() if file in pictures.reasons}
            reasons |= {file: bad[keys[file]] for file in some if keys.get(file) in bad}
            bar.update_absolute(done)
        keys = {file: key for file, key in keys.items() if file not in reasons}
        stored.keep_only(keys)
    finally:
        stored.save()
    unreadable = [Unreadable(name_of(file), reasons[file]) for file in files if file in reasons]
    if not keys:
        raise ValueError(
            f"none of the {len(files)} pictures in {folder} can be read; {unreadable[0].name}: {unreadable[0].reason}"
        )
    return FolderEmbeddings(list(keys), torch.stack([stored[key] for key in keys.values()]), unreadable)


def name_of(file: Path) -> str:
    """The file's name, with a ? for what is no text: not every file system keeps to Unicode."""
    return file.name.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class _Pictures(Sequence):
    """The pictures of files, each read when it is asked for. One that cannot be read is a black dot, and `reasons` says why."""

    files: list[Path]
    reasons: dict[Path, str]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return _Pictures(self.files[place], self.reasons)
        comfy.model_management.throw_exception_if_processing_interrupted()
        file = self.files[place]
        try:
            return read_image(file)
        except UnreadableImageError as error:
            self.reasons[file] = str(error)
            return torch.zeros(1, 1, 3)


class _Share:
    """A bar's part from `first` to `last`, for a call of so many steps."""

    def __init__(self, bar: comfy.utils.ProgressBar, first: int, last: int, steps: int):
        self._bar, self._first, self._last, self._steps = bar, first, last, steps
        self._done = 0

    def update(self, steps: int) -> None:
        self._done += steps
        self._bar.update_absolute(self._first + (self._last - self._first) * self._done // self._steps)
