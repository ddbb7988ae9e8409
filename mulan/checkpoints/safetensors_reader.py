"""Reading a .safetensors file: its library checks the header, the values are read from a mapping of the file.

Not by the library's `get_tensor`: it opens the path twice, so that another server which replaces the file in between
leaves an old header with new values; and it loses 64 bytes with every tensor (0.4 to 0.8, two integers of a slice).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .safetensors_writer import DTYPES

_DTYPES = {name: str(dtype).removeprefix("torch.") for dtype, name in DTYPES.items()}
_DTYPES |= {"U16": "uint16", "U32": "uint32", "U64": "uint64", "C64": "complex64"}  # which we never write


class SafetensorsReader:
    """The tensors of one file: shapes and dtypes (in torch's words) by name, metadata, values one by one.

    Raises SafetensorError, OSError or RuntimeError where the file is damaged.
    """

    def __init__(self, path: Path):
        version = None
        while version != (version := _version(path)):
            try:
                self._open(path)
            except (SafetensorError, OSError, RuntimeError):
                if version == _version(path):
                    raise

    def _open(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt", device="cpu")
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        self.dtypes = {
            name: _DTYPES.get(dtype := str(part.get_dtype()), dtype.lower()) for name, part in slices.items()
        }
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        self._ranges = {name: [8 + length + end for end in header[name]["data_offsets"]] for name in slices}
        self._bytes = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor, mapped."""
        dtype = getattr(torch, self.dtypes[name], None)
        if dtype is None:  # of less than a byte
            return self._file.get_tensor(name)
        start, end = self._ranges[name]
        return torch.asarray(self._bytes[start:end], dtype=torch.uint8).view(dtype).reshape(self.shapes[name])


def _version(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
