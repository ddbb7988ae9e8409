"""The tensors of a checkpoint on the hub: names and shapes from the files' headers, values only where they are needed.

Of a .safetensors file the bytes of the tensors alone are read, in the order of the file. Files of torch.save are
downloaded one at a time and removed again; what tensors they hold is known before, from the directory of their zip.
"""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..boundary.files import file_digest
from ..boundary.read_ahead import read_ahead
from ..checkpoints.safetensors_writer import DTYPES
from ..checkpoints.tensor_files import INDEX_NAMES, SINGLE_NAMES, TensorFile, open_tensors, read_index
from .hub import HubError, HubFile, Repository
from .torch_directory import open_directory
from .unfinished import PART

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
SMALL = (".json", ".model", ".txt")  # configuration and tokenizer
LARGEST_SMALL = 2**26
HEADER = 2**19  # bytes of a .safetensors file that are read first
LARGEST_HEADER = 10**8  # what the format's own library allows
OLD_FORMAT = 2**30  # files of before torch 1.6 have no directory: larger ones are not taken

_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file of the hub; bytes [start, end), 0 to 0 where the file has to be downloaded for it."""

    file: HubFile
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0
    end: int = 0

    @property
    def in_part(self) -> bool:
        return self.file.name.endswith(".safetensors")


class HubTensors:
    """The tensors of a checkpoint of `repository`: one of its files, or a folder where `name` is None.

    `file` is what converters plan with: its `read` gives tensors on "meta", or values once `reading` is true. `folder`
    is a folder for configuration and tokenizer, `work` one on a disk with room for a file of torch.save. `on_wait` is
    called often while waiting, `on_bytes` with the number of bytes that came; both may raise to stop.
    """

    def __init__(self, repository: Repository, name: str | None, folder: Path, work: Path, on_wait: Callable[[], None]):
        self.repository, self.work, self.on_wait = repository, work, on_wait
        self.on_bytes: Callable[[int], None] = lambda _: None
        self.reading = False
        self.asked: list[str] = []  # names that were read from "meta"
        self._shard: tuple[HubFile, TensorFile] | None = None
        self._coming: Iterator[tuple[str, torch.Tensor]] = iter(())
        folder.mkdir(exist_ok=True)
        for file in repository.files.values():
            if file.name.endswith(SMALL) and file.size <= LARGEST_SMALL:
                (folder / file.name).write_bytes(self._bytes(file))
        self.stored: dict[str, Stored] = {}
        metadata: dict[str, str] = {}
        for file, wanted in self._weight_files(name, folder):
            tensors, metadata = self._look_into(file)
            lost = sorted(wanted - tensors.keys())
            if lost:
                raise HubError(f"{repository.title} is damaged: {file.name} does not hold {lost[0]}")
            self.stored |= {name: tensor for name, tensor in tensors.items() if name in wanted or not wanted}
        self.file = TensorFile(
            folder / name if name else folder,
            {name: stored.shape for name, stored in self.stored.items()},
            self._read,
            metadata if name else {},
            {name: str(stored.dtype).removeprefix("torch.") for name, stored in self.stored.items()},
        )

    def needed(self, read: Callable[[str], torch.Tensor], name: str) -> list[str]:
        """Return the names that `read(name)` reads, whatever it makes of them."""
        self.asked = []
        read(name)
        return self.asked

    def position(self, name: str) -> tuple[str, int]:
        """Return where a tensor lies: read in this order, every file is read once from its begin to its end."""
        return self.stored[name].file.name, self.stored[name].start

    def download_size(self, names: Iterable[str]) -> int:
        """Return how many bytes come from the hub for these tensors."""
        stored = [self.stored[name] for name in dict.fromkeys(names)]
        whole = {each.file.name: each.file.size for each in stored if not each.in_part and each.file.cached is None}
        return sum(whole.values()) + sum(
            each.end - each.start for each in stored if each.in_part and each.file.cached is None
        )

    def largest_shard(self, names: Iterable[str]) -> int:
        """Return the size of the largest file that lies on the disk while these tensors are read."""
        files = {self.stored[name].file for name in names if not self.stored[name].in_part}
        return max((file.size for file in files if file.cached is None), default=0)

    def follow(self, names: Iterable[str]) -> None:
        """Read ahead: `names` are those that will be read, in this order."""
        wanted = [(name, self.stored[name]) for name in names if self.stored[name].in_part]
        ranges: list[tuple[HubFile, int, int]] = []
        for _, stored in wanted:
            if ranges and ranges[-1][0] == stored.file and ranges[-1][2] == stored.start:
                ranges[-1] = (stored.file, ranges[-1][1], stored.end)
            else:
                ranges.append((stored.file, stored.start, stored.end))

        def produce(stopped: threading.Event) -> Iterator[bytes]:
            for file, start, end in ranges:
                yield from self.repository.stream(file, start, end, stopped)

        self._coming = self._tensors(wanted, read_ahead(produce, self.on_wait)) if ranges else iter(())

    def close(self) -> None:
        """End reading ahead, and remove the file of torch.save that was read last."""
        self._coming = iter(())
        self._drop_shard()

    def _tensors(self, wanted: list[tuple[str, Stored]], chunks: Iterator[bytes]) -> Iterator[tuple[str, torch.Tensor]]:
        rest = memoryview(b"")
        for name, stored in wanted:
            data = torch.empty(stored.end - stored.start, dtype=torch.uint8)
            into, at = memoryview(data.numpy()), 0  # pyright: ignore[reportArgumentType]
            while at < len(into):
                if not rest:
                    rest = memoryview(next(chunks))
                    if stored.file.cached is None:
                        self.on_bytes(len(rest))
                part = rest[: len(into) - at]
                into[at : at + len(part)] = part
                rest, at = rest[len(part) :], at + len(part)
            yield name, data.view(stored.dtype).reshape(stored.shape)

    def _read(self, name: str) -> torch.Tensor:
        stored = self.stored[name]
        if not self.reading and stored.dtype != torch.uint8:  # those are texts, such as a tokenizer
            self.asked.append(name)
            return torch.empty(stored.shape, dtype=stored.dtype, device="meta")
        if not stored.in_part:
            return self._open_shard(stored.file).read(name)
        coming, tensor = next(self._coming, (None, None))
        if tensor is not None and coming == name:
            return tensor
        data = bytearray(self._bytes(stored.file, stored.start, stored.end))
        return torch.frombuffer(data, dtype=torch.uint8).view(stored.dtype).reshape(stored.shape)

    def _bytes(self, file: HubFile, start: int = 0, end: int | None = None) -> bytes:
        stop = file.size if end is None else end
        return b"".join(read_ahead(lambda stopped: self.repository.stream(file, start, stop, stopped), self.on_wait))

    # --- what files there are, and what they hold ---

    def _weight_files(self, name: str | None, folder: Path) -> Iterator[tuple[HubFile, set[str]]]:
        """Yield the files of weights and the names that are read of each; all of them where there are none."""
        files = self.repository.files
        if name is None:
            index = next((each for each in INDEX_NAMES if each in files), None)
            name = next((each for each in SINGLE_NAMES if each in files), None)
            if index is not None:
                shard_of = read_index(folder / index)
                missing = sorted(set(shard_of.values()) - files.keys())
                if missing:
                    raise HubError(f"{self.repository.title} lacks {len(missing)} of its shards: {missing[0]}")
                for shard in sorted(set(shard_of.values())):
                    yield files[shard], {name for name, its in shard_of.items() if its == shard}
                return
        if name is None:
            raise HubError(f"{self.repository.title} holds no checkpoint: neither {' nor '.join(SINGLE_NAMES)}")
        yield files[name], set()

    def _look_into(self, file: HubFile) -> tuple[dict[str, Stored], dict[str, str]]:
        """Return the tensors of a file, and its metadata."""
        if file.name.endswith(".safetensors"):
            return self._read_header(file)
        if file.cached is not None:
            found = open_tensors(file.cached)
        elif (found := self._directory(file)) is None:
            if file.size > OLD_FORMAT:
                raise HubError(
                    f"{file.name} of {self.repository.title} is in torch's format of before 1.6, which cannot be read "
                    f"in parts. Download it with `hf download {self.repository.id} {file.name}`, and convert the file"
                )
            found = self._open_shard(file)
        return {name: Stored(file, found.read(name).dtype, shape) for name, shape in found.shapes.items()}, {}

    def _read_header(self, file: HubFile) -> tuple[dict[str, Stored], dict[str, str]]:
        begin = self._bytes(file, 0, min(file.size, HEADER))
        length = 8 + int.from_bytes(begin[:8], "little")
        where = f"{file.name} of {self.repository.title}"
        if not 10 <= length <= min(file.size, LARGEST_HEADER):
            raise HubError(f"{where} is no safetensors file, or is damaged")
        begin += self._bytes(file, len(begin), length) if length > len(begin) else b""
        try:
            header = json.loads(begin[8:length])
            metadata = header.pop("__metadata__", {})
            tensors = {
                name: Stored(
                    file,
                    _DTYPES[entry["dtype"]],
                    tuple(entry["shape"]),
                    length + entry["data_offsets"][0],
                    length + entry["data_offsets"][1],
                )
                for name, entry in header.items()
            }
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise HubError(f"{where} has a header that cannot be read: {error!r}") from error
        for name, tensor in tensors.items():
            if tensor.end - tensor.start != tensor.dtype.itemsize * math.prod(tensor.shape):
                raise HubError(f"{where} is damaged: its tensor {name} has another size than its shape says")
        size = max((tensor.end for tensor in tensors.values()), default=length)
        if size != file.size:
            raise HubError(f"{where} is damaged: its tensors take {size:,} bytes, and it has {file.size:,}")
        return tensors, metadata

    def _directory(self, file: HubFile) -> TensorFile | None:
        path = self.work / f"{file.name}.{self.repository.revision[:12]}.directory"
        return open_directory(lambda start, end: self._bytes(file, start, end), file.size, path)

    # --- whole files ---

    def _open_shard(self, file: HubFile) -> TensorFile:
        if self._shard is not None and self._shard[0] == file:
            return self._shard[1]
        self._drop_shard()
        path = file.cached or self._download(file)
        self._shard = file, open_tensors(path)
        return self._shard[1]

    def _download(self, file: HubFile) -> Path:
        """Download a file whole, behind what an earlier run has of it."""
        path = self._shard_path(file)
        with open(path, "ab") as part:
            part.truncate(min(part.tell(), file.size))
            start = part.seek(0, io.SEEK_END)
            self.on_bytes(start)
            for chunk in read_ahead(
                lambda stopped: self.repository.stream(file, start, file.size, stopped), self.on_wait
            ):
                part.write(chunk)
                self.on_bytes(len(chunk))
        if file.sha256 is not None and file_digest(path) != file.sha256:
            path.unlink()
            raise HubError(f"{file.name} of {self.repository.title} came damaged (its sha256 is another). Start again")
        return path

    def _drop_shard(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None and shard[0].cached is None:
            file = shard[0]
            del shard  # Windows removes no file that is mapped
            self._shard_path(file).unlink(missing_ok=True)

    def _shard_path(self, file: HubFile) -> Path:
        return self.work / f"{file.name}.{self.repository.revision[:12]}{PART}"
