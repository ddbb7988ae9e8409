"""Encoded prompts on disk: a prompt that was encoded before needs no text encoder, also after a restart.

Each is a .safetensors of its own, named by a key in which everything stands that its contents depend on (keys are
remembering_clip.py's matter). No file holds a prompt's text. What is damaged or of another kind is ignored, and
replaced by the next prompt of that key. Several servers may share the folder: files are written whole or not at all,
each process removes the ones used longest ago, and one that is gone is encoded again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from ..boundary.interrupts import interruptible
from ..boundary.limits import MAX_REMEMBERED_BYTES
from ..checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from ..checkpoints.tensor_files import WrongFileError, open_tensors

MARK, LAYOUT, CHECKSUM = "mulan_prompt", "1", "sha256"  # metadata: what the file is, its layout; its tensors' digest
CONTEXT, POOLED = "context", "pooled"
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")


class EncodedPrompt(NamedTuple):
    """What the text encoder and the adapter make of a prompt: context [1, rows, context_dim], pooled [1, pooled_dim]
    or None.
    """

    context: torch.Tensor
    pooled: torch.Tensor | None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a file holds."""
        return {CONTEXT: self.context} | ({} if self.pooled is None else {POOLED: self.pooled})


class PromptMemory:
    """The encoded prompts in `folder`, at most `limit` bytes of them; the folder is made where something is stored."""

    def __init__(self, folder: Path, limit: int = MAX_REMEMBERED_BYTES):
        self.folder = folder
        self._limit = limit
        self._has_warned = False

    def recall(self, key: str) -> EncodedPrompt | None:
        """Return what was stored under a key (64 hexadecimal digits), on the CPU, bit for bit; None where nothing
        usable was.
        """
        path = self._path(key)
        try:
            if not 0 < path.stat().st_size <= self._limit:
                return None
            file = open_tensors(path)
            if file.metadata.get(MARK) != LAYOUT:
                return None
            # Copies: the file may be replaced or cut while its conditioning lives on.
            tensors = {name: file.read(name).clone() for name in file.shapes}
            found = EncodedPrompt(tensors[CONTEXT], tensors.get(POOLED))
            if file.metadata.get(CHECKSUM) != _checksum(key, found):
                return None
            os.utime(path)  # used: it goes last
        except (WrongFileError, OSError, KeyError, TypeError, RuntimeError):
            return None
        return found

    def store(self, prompts: Mapping[str, EncodedPrompt]) -> None:
        """Keep prompts under their keys, and remove those used longest ago where all take more than the limit.

        Says in the log, once, where the disk refuses: that costs only time.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for key, prompt in interruptible(prompts.items()):
                self._write(key, prompt)
            self._remove_oldest()
        except OSError as error:
            if not self._has_warned:
                logging.warning("MuLan: encoded prompts cannot be kept in %s: %s", self.folder, error)
            self._has_warned = True

    def clear(self) -> tuple[int, int]:
        """Remove all of them; return how many there were, and their bytes. Raises OSError where one stays."""
        entries = self._entries()
        for _, _, path in entries:
            path.unlink(missing_ok=True)
        return len(entries), sum(size for _, size, _ in entries)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _write(self, key: str, prompt: EncodedPrompt) -> None:
        tensors = prompt.tensors()
        specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        if sum(spec.size for spec in specs.values()) > self._limit // 2:
            return  # it would push out most others
        with SafetensorsWriter(self._path(key), specs, {MARK: LAYOUT, CHECKSUM: _checksum(key, prompt)}) as file:
            for name, tensor in tensors.items():
                file.write(name, tensor)

    def _remove_oldest(self) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self._limit:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Return time of the last use, bytes and path of each."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if _ENTRY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # another server removed it
                        stat = entry.stat(follow_symlinks=False)
                        found.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
        return found


def _checksum(key: str, prompt: EncodedPrompt) -> str:
    digest = hashlib.sha256(key.encode())
    for name, tensor in prompt.tensors().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
