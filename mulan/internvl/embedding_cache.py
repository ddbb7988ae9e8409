"""Embeddings of image files kept in a .safetensors, so that a folder is embedded once, and later only what is new in
it.

A vector is found by the sha256 of its file's content: a file that was renamed or copied is known, one that was changed
is not. On systems where every write also moves a file's ctime, which no program can set back (all but Windows), a file
with the same size, mtime and ctime counts as unchanged without reading it. It does not if it was changed less than two
seconds before it was read: clocks of file systems may be that coarse.
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
CLOCK_RESOLUTION = 2 * 10**9  # nanoseconds, FAT's clock

Fingerprint = tuple[int, int, int]  # size, mtime and ctime of a file


class EmbeddingCache:
    """The vectors in the file `path`; empty where there is no such file, or it cannot be used.

    `owner`: whatever the vectors depend on beside the images' content.
    """

    def __init__(self, path: Path, owner: str):
        self.path = path
        self._owner = owner
        self._vectors: dict[str, torch.Tensor] = {}  # content key -> [E]
        self._keys: dict[
            str, tuple[Fingerprint, str]
        ] = {}  # file -> its fingerprint when its content was read, content key
        self._changed = False
        try:
            if path.is_file():
                self._read()
        except (WrongFileError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            logging.warning("InternVL: the stored embeddings %s cannot be used and are computed again: %s", path, error)
            self._vectors, self._keys = {}, {}

    def key(self, file: Path) -> str:
        """Return the key of a file's content. Raises OSError where the file cannot be read."""
        fingerprint = _fingerprint(file)
        known = self._keys.get(str(file))
        if fingerprint is not None and known is not None and known[0] == fingerprint:
            return known[1]
        key = _content_key(file)
        if fingerprint is not None:
            self._keys[str(file)] = fingerprint, key
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
        """Forget all but these files and the keys of their content."""
        for stale in self._vectors.keys() - set(files.values()):
            del self._vectors[stale]
            self._changed = True
        names = set(map(str, files))
        self._keys = {name: known for name, known in self._keys.items() if name in names}

    def save(self) -> None:
        """Write the file, whole or not at all, where something changed.

        Logs a warning where the disk refuses: it costs only time at the next run.
        """
        if not self._changed or not self._vectors:
            return
        vectors = torch.stack(list(self._vectors.values()))
        metadata = {
            MARK: LAYOUT,
            "owner": self._owner,
            "keys": json.dumps(list(self._vectors)),
            "files": json.dumps(self._keys),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with SafetensorsWriter(
                self.path, {VECTORS: TensorSpec(vectors.dtype, tuple(vectors.shape))}, metadata
            ) as stream:
                stream.write(VECTORS, vectors)
        except OSError as error:
            logging.warning("InternVL: the embeddings could not be stored in %s: %s", self.path, error)
            return
        self._changed = False

    def _read(self) -> None:
        file = open_tensors(self.path)
        if file.metadata.get(MARK) != LAYOUT or file.metadata["owner"] != self._owner:
            raise ValueError("they were made by another model, or by another version of MuLan Nodes")
        keys = json.loads(file.metadata["keys"])
        vectors = file.read(VECTORS).clone()  # a copy: the file will be replaced
        if vectors.dtype != torch.float32 or len(vectors) != len(keys) or not vectors.isfinite().all():
            raise ValueError("its vectors are damaged")
        self._vectors = dict(zip(keys, vectors, strict=True))
        self._keys = {
            name: ((int(size), int(mtime), int(ctime)), str(key))
            for name, ((size, mtime, ctime), key) in json.loads(file.metadata["files"]).items()
        }


def cache_path(parent: Path, folder: Path, mode: str, framing: str, owner: str) -> Path:
    """Return where the vectors of a folder's images are kept: a name that people can read, and a few digits that tell
    folders and models apart.
    """
    digits = hashlib.sha256(f"{folder.resolve()}\n{owner}".encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return parent / f"{folder.resolve().name[:60]} {mode} {framing} {digits}.safetensors"


def _content_key(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _fingerprint(file: Path) -> Fingerprint | None:
    """Return None where size and times would prove nothing."""
    stat = file.stat()
    proves = os.name == "posix" and time.time_ns() - stat.st_ctime_ns > CLOCK_RESOLUTION
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) if proves else None
