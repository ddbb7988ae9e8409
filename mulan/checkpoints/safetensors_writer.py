"""A .safetensors file written piece by piece, for models larger than memory.

The header comes first, since shapes and dtypes are known before any value is. The file bears its name only when every
byte of it is on disk. Source: the safetensors format: 8 bytes of length, a JSON header, then the tensors without a gap.
"""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from ..boundary.files import UnwritableError, WholeFile
from ..boundary.values import format_size

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class TensorSpec(NamedTuple):
    """Dtype and shape of a tensor in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


def is_storable(tensor: torch.Tensor) -> bool:
    """Return whether a file can hold the tensor: a dense one, with values, of a dtype that the format has."""
    dense = tensor.layout == torch.strided and not tensor.is_nested
    return dense and tensor.device.type != "meta" and tensor.dtype in DTYPES


class SafetensorsWriter:
    """Write the tensors of `specs` to `target` in any order, each whole or in chunks of rows; a context manager.

    `target` is a path, or an iterator of paths of which the first free one is taken: see WholeFile. Whatever ends the
    writing early (an error, Ctrl-C) removes the file. Raises UnwritableError; where the disk has no room, before
    anything is written. A WholeFile of another kind may be the target too; `spare` bytes of the header stay empty.
    """

    def __init__(
        self,
        target: Path | Iterator[Path] | WholeFile,
        specs: Mapping[str, TensorSpec],
        metadata: Mapping[str, str],
        spare: int = 0,
    ):
        self._file = target if isinstance(target, WholeFile) else WholeFile(target)
        self._spare = spare
        self._specs = dict(specs)
        self._metadata = dict(metadata)
        # Larger elements first, as the format's own library does: so each tensor lies on a multiple of its element.
        order = sorted(self._specs, key=lambda name: (-self._specs[name].dtype.itemsize, name))
        self._offsets: dict[str, int] = {}
        offset = 0
        for name in order:
            self._offsets[name] = offset
            offset += self._specs[name].size
        self._header = self._make_header(order)
        self._missing = {name: spec.size for name, spec in self._specs.items() if spec.size}
        self.size = len(self._header) + offset
        self.written = len(self._header)

    @property
    def path(self) -> Path:
        """The file's path, after the end the real one."""
        return self._file.path

    @property
    def complete(self) -> int:
        """The number of tensors written whole."""
        return len(self._specs) - len(self._missing)

    def __enter__(self) -> SafetensorsWriter:
        with ExitStack() as undo:
            undo.enter_context(self._file)
            check_disk_space(self.path.parent, self.path.name, self.size - self._file.held)
            self._file.write(self._header, 0)
            self._file.truncate(self.size)
            undo.pop_all()
        return self

    def write(self, name: str, tensor: torch.Tensor, first_row: int = 0) -> None:
        """Write a tensor, or its rows from `first_row` on. Raises ValueError for another dtype or too many rows."""
        spec = self._specs[name]
        row_size = spec.size // spec.shape[0] if spec.shape and spec.shape[0] else spec.size
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        start = first_row * row_size
        if tensor.dtype != spec.dtype or start + data.nbytes > spec.size:
            raise ValueError(
                f"{name}: {tuple(tensor.shape)} {tensor.dtype} from row {first_row} on does not fit "
                f"{spec.shape} {spec.dtype}"
            )
        if self._file.held or data.any():  # a new file is zeros, which take no room where nothing was written
            self._file.write(data.data, len(self._header) + self._offsets[name] + start)
        self.written += data.nbytes
        left = self._missing.pop(name, 0) - data.nbytes
        if left:
            self._missing[name] = left

    def keep(self, name: str) -> None:
        """Count a tensor as written: the file held it before."""
        self.written += self._missing.pop(name, 0)

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None and self._missing:
            error = ValueError(
                f"{self.path.name}: {len(self._missing)} tensors are not complete, "
                f"the first is {next(iter(self._missing))}"
            )
            self._file.__exit__(ValueError, error, None)
            raise error
        self._file.__exit__(kind, error, traceback)

    def _make_header(self, order: list[str]) -> bytes:
        header: dict[str, object] = {"__metadata__": self._metadata} if self._metadata else {}
        for name in order:
            spec, start = self._specs[name], self._offsets[name]
            header[name] = {
                "dtype": DTYPES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [start, start + spec.size],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * self._spare
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def check_disk_space(folder: Path, name: str, size: int) -> None:
    """Raise UnwritableError where the disk of `folder` has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UnwritableError(
            errno.ENOSPC,
            f"{name} takes {format_size(size)}, but the disk of {folder.resolve()} has {format_size(free)} free: "
            f"make room, or name another folder",
        )
