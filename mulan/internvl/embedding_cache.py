"""Vectors of picture files kept in a .safetensors, so that a folder is embedded once and then only what is new in it.

A vector goes by the sha256 of its file's content: a file that was renamed or copied is known, one that was changed is not. On systems where every
write also moves a file's ctime, which no program can set back (all but Windows), a file whose size, mtime and ctime are as they were is taken for
unchanged without reading it; not so if it was changed less than two seconds before it was read, since clocks of file systems may be that coarse.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from ..checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from ..checkpoints.tensor_files import WrongFileError, open_tensors

MARK, LAYOUT = "internvl_embeddings", "1"  # the metadata key that says what the file is, and its layout
VECTORS = "vectors"
CLOCK = 2 * 10**9  # nanoseconds, FAT's clock

Stamp = tuple[int, int, int]  # size, mtime and ctime of a file


class StoredVectors:
    """The vectors in `path` that `owner` (whatever they depend on beside the content) made; empty where there is none, or it cannot be used."""

    def __init__(self, path: Path, owner: str):
        self.path = path
        self._owner = owner
        self._vectors: dict[str, torch.Tensor] = {}  # content key -> [E]
        self._keys: dict[str, tuple[Stamp, str]] = {}  # file -> its stamp when its content was read, content key
        self._changed = False
        try:
            if path.is_file():
                self._read()
        except (WrongFileError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            logging.warning("InternVL: the kept embeddings %s cannot be used and are made anew: %s", path, error)
            self._vectors, self._keys = {}, {}

    def key(self, file: Path) -> str:
        """The content's key. Raises OSError where the file cannot be read."""
        stamp = _stamp(file)
        known = self._keys.get(str(file))
        if stamp is not None and known is not None and known[0] == stamp:
            return known[1]
        key = _content_key(file)
        if stamp is not None:
            self._keys[str(file)] = stamp, key
            self._changed = True
        return key

    def __contains__(self, key: str) -> bool:
        return key in self._vectors

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._vectors[key]

    def __setitem__(self, key: str, vector: torch.Tensor) -> None:
        self._vectors[key] = vector
        self._changed = True

    def keep_only(self, files: Mapping[Path, str]) -> None:
        """Forgets all but these files and their content's keys."""
        for stale in self._vectors.keys() - set(files.values()):
            del self._vectors[stale]
            self._changed = True
        names = set(map(str, files))
        self._keys = {name: known for name, known in self._keys.items() if name in names}

    def save(self) -> None:
        """Writes the file, whole or not at all, where something changed. A disk that refuses costs only time at the next run: it is a warning."""
        if not self._changed or not self._vectors:
            return
        vectors = torch.stack(list(self._vectors.values()))
        told = {
            MARK: LAYOUT,
            "owner": self._owner,
            "keys": json.dumps(list(self._vectors)),
            "files": json.dumps(self._keys),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with SafetensorsWriter(
                self.path, {VECTORS: TensorSpec(vectors.dtype, tuple(vectors.shape))}, told
            ) as stream:
                stream.write(VECTORS, vectors)
        except OSError as error:
            logging.warning("InternVL: the embeddings could not be kept in %s: %s", self.path, error)
            return
        self._changed = False

    def _read(self) -> None:
        file = open_tensors(self.path)
        if file.metadata.get(MARK) != LAYOUT or file.metadata["owner"] != self._owner:
            raise ValueError("they were made by another model, or by another version of MuLan Nodes")
        keys, vectors = (
            json.loads(file.metadata["keys"]),
            file.read(VECTORS).clone(),
        )  # a copy: the file will be replaced
        if vectors.dtype != torch.float32 or len(vectors) != len(keys) or not vectors.isfinite().all():
            raise ValueError("its vectors are damaged")
        self._vectors = dict(zip(keys, vectors))
        self._keys = {
            name: ((*map(int, stamp),), str(key)) for name, (stamp, key) in json.loads(file.metadata["files"]).items()
        }


def stored_path(parent: Path, folder: Path, mode: str, framing: str, owner: str) -> Path:
    """Where the vectors of a folder's pictures are kept: a name that people can read, and a few digits that tell folders and models apart."""
    digits = hashlib.sha256(f"{folder.resolve()}\n{owner}".encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return parent / f"{folder.resolve().name[:60]} {mode} {framing} {digits}.safetensors"


def _content_key(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _stamp(file: Path) -> Stamp | None:
    """None where size and times would prove nothing."""
    told = file.stat()
    proves = os.name == "posix" and time.time_ns() - told.st_ctime_ns > CLOCK
    return (told.st_size, told.st_mtime_ns, told.st_ctime_ns) if proves else None
