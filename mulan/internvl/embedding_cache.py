"""Embeddings of image files kept in a .safetensors, so that a folder is embedded once, and later only what is new in
it.

A vector is found by the sha256 of its file's content: a file that was renamed or copied is known, one that was changed
is not. On systems where every write also moves a file's ctime, which no program can set back (all but Windows), a file
with the same size, mtime and ctime counts as unchanged without reading it. It does not if it was changed less than two
seconds before it was read: clocks of file systems may be that coarse.

Several servers may embed one folder at the same time: whoever saves adds to the file what others have stored there
since, under a lock, and replaces it as a whole. A reader sees the old file or the new one. Where the lock cannot be had
(a server was killed in that moment, or the disk is very slow) the last file wins: then vectors may be computed twice,
never wrong.
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

from ..boundary.files import file_digest, locked, parse_json
from ..checkpoints.file_content import CLOCK_RESOLUTION
from ..checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from ..checkpoints.tensor_files import WrongFileError, open_tensors

MARK, LAYOUT = "internvl_embeddings", "1"  # the metadata key that says what the file is, and its layout
VECTORS = "vectors"

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
        self._forgotten: set[str] = set()  # content keys
        self._changed = False
        self._read: tuple | None = None  # which version of the file
        self._merge_stored()

    def key(self, file: Path) -> str:
        """Return the key of a file's content. Raises OSError where the file cannot be read."""
        fingerprint = _fingerprint(file)
        known = self._keys.get(str(file))
        if fingerprint is not None and known is not None and known[0] == fingerprint:
            return known[1]
        key = file_digest(file)
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
            self._forgotten.add(stale)
            self._changed = True
        names = set(map(str, files))
        self._keys = {name: known for name, known in self._keys.items() if name in names}

    def save(self) -> None:
        """Write the file, whole or not at all, where something changed.

        Logs a warning where the disk refuses: it costs only time at the next run.
        """
        if not self._changed or not self._vectors:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path):
                self._merge_stored()
                self._write()
        except OSError as error:
            logging.warning("InternVL: the embeddings could not be stored in %s: %s", self.path, error)
            return
        self._changed = False

    def _write(self) -> None:
        vectors = torch.stack(list(self._vectors.values()))
        metadata = {
            MARK: LAYOUT,
            "owner": self._owner,
            "keys": json.dumps(list(self._vectors)),
            "files": json.dumps(self._keys),
        }
        specs = {VECTORS: TensorSpec(vectors.dtype, tuple(vectors.shape))}
        with SafetensorsWriter(self.path, specs, metadata) as file:
            file.write(VECTORS, vectors)

    def _merge_stored(self) -> None:
        """Add what the file holds and this cache does not, where the file is new since it was read last."""
        try:
            stat = self.path.stat()
            version = stat.st_ino, stat.st_size, stat.st_mtime_ns
            if self._read == version:
                return
            self._read = version
            vectors, keys = self._stored()
        except FileNotFoundError:
            return
        except (WrongFileError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            logging.warning(
                "InternVL: the stored embeddings %s cannot be used and are computed again: %s", self.path, error
            )
            return
        for forgotten in self._forgotten & vectors.keys():
            del vectors[forgotten]
        self._vectors = vectors | self._vectors
        self._keys = {name: known for name, known in keys.items() if known[1] in vectors} | self._keys

    def _stored(self) -> tuple[dict[str, torch.Tensor], dict[str, tuple[Fingerprint, str]]]:
        """Read vectors by content key, and the files' keys."""
        file = open_tensors(self.path)
        if file.metadata.get(MARK) != LAYOUT or file.metadata["owner"] != self._owner:
            raise ValueError("they were made by another model, or by another version of MuLan Nodes")
        keys = parse_json(file.metadata["keys"])
        vectors = file.read(VECTORS).clone()  # a copy: the file will be replaced
        if vectors.dtype != torch.float32 or len(vectors) != len(keys) or not vectors.isfinite().all():
            raise ValueError("its vectors are damaged")
        files = {
            name: ((int(size), int(mtime), int(ctime)), str(key))
            for name, ((size, mtime, ctime), key) in parse_json(file.metadata["files"]).items()
        }
        return dict(zip(keys, vectors, strict=True)), files


def cache_path(parent: Path, folder: Path, mode: str, framing: str, owner: str) -> Path:
    """Return where the vectors of a folder's images are kept: a name that people can read, and a few digits that tell
    folders and models apart.
    """
    digits = hashlib.sha256(f"{folder.resolve()}\n{owner}".encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return parent / f"{folder.resolve().name[:60]} {mode} {framing} {digits}.safetensors"


def _fingerprint(file: Path) -> Fingerprint | None:
    """Return None where size and times would prove nothing."""
    stat = file.stat()
    proves = os.name == "posix" and time.time_ns() - stat.st_ctime_ns > CLOCK_RESOLUTION
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) if proves else None
