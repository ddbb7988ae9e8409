"""What a file of torch.save far away holds, told by the directory of its zip and the small entries."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

from ..checkpoints.tensor_files import TensorFile, open_tensors

BLOCK = 2**17  # bytes that are read together


def open_directory(fetch: Callable[[int, int], bytes], size: int, path: Path) -> TensorFile | None:
    """Return the tensors of a file on "meta"; None where it has no directory: it is of before torch 1.6.

    `fetch(start, end)` returns its bytes. A file of the same size is made at `path` for a moment, with holes where the
    tensors' values are, and opened like any other. Raises WrongFileError.
    """
    remote = _RemoteFile(fetch, size)
    try:
        with zipfile.ZipFile(remote) as archive:  # pyright: ignore[reportArgumentType]
            entries, directory = archive.infolist(), archive.start_dir
    except zipfile.BadZipFile:
        return None
    starts = sorted({*(entry.header_offset for entry in entries), directory})
    end_of = dict(zip(starts, starts[1:], strict=False))
    try:
        with open(path, "wb") as skeleton:
            skeleton.truncate(size)
            for entry in entries:
                if "data" not in entry.filename.split("/")[1:-1]:  # <name>/data/<number> are the values
                    skeleton.seek(entry.header_offset)
                    skeleton.write(remote.bytes(entry.header_offset, end_of[entry.header_offset]))
            skeleton.seek(directory)
            skeleton.write(remote.bytes(directory, size))
        found = open_tensors(path)
        empty = {name: found.read(name).to("meta") for name in found.shapes}
        shapes, dtypes = dict(found.shapes), dict(found.dtypes)
        del found  # Windows removes no file that is mapped
    finally:
        path.unlink(missing_ok=True)
    return TensorFile(path, shapes, empty.__getitem__, {}, dtypes)


class _RemoteFile(io.RawIOBase):
    """A file far away for `zipfile`, read in blocks that are kept."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int):
        self._fetch, self._size, self._at = fetch, size, 0
        self._blocks: dict[int, bytes] = {}

    def bytes(self, start: int, end: int) -> bytes:
        blocks = range(start // BLOCK, -(-end // BLOCK))
        for block in blocks:
            if block not in self._blocks:
                self._blocks[block] = self._fetch(block * BLOCK, min((block + 1) * BLOCK, self._size))
        data = b"".join(self._blocks[block] for block in blocks)
        return data[start - blocks.start * BLOCK :][: end - start]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        data = self.bytes(self._at, end) if end > self._at else b""
        self._at += len(data)
        return data
