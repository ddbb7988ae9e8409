"""Opening model files: lazily, names and shapes first; a tensor is read only where it is needed."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..boundary.files import parse_json
from ..boundary.limits import MAX_JSON_LENGTH
from ..boundary.reading import read_file
from .file_content import FileContent
from .safetensors_reader import SafetensorsReader

# A part of a library's error -> what it means
_REASONS = {
    "IncompleteBuffer": "its data is not complete",
    "eader": "its header is not complete",
    "PytorchStreamReader": "its end is missing",
    "Ran out of input": "its end is missing",
    "not a zip file": "its end is missing",
}
CONFIG = "config"  # metadata of a converted file: config.json
INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_NAMES = ("model.safetensors", "pytorch_model.bin")  # of a folder without shards
STREAMED_WEIGHTS = 2**28  # weights that `open_streaming` reads between two openings


class WrongFileError(ValueError):
    """A model file that cannot be used. The message says which, what it is, what was expected and where to get that."""


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file or sharded folder, known by name, shape and dtype before any is read.

    dtypes: in torch's words ("float16"); a name may be absent where it is not known. content: of the whole file or
    folder as it was opened, None where these tensors are a part of it.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], torch.Tensor]
    metadata: Mapping[str, str]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    content: FileContent | None = None

    def renamed(self, stored: Mapping[str, str], metadata: Mapping[str, str] | None = None) -> TensorFile:
        """Return those tensors that `stored` names, under its keys."""
        return TensorFile(
            self.path,
            {name: self.shapes[own] for name, own in stored.items()},
            lambda name: self.read(stored[name]),
            self.metadata if metadata is None else metadata,
            {name: self.dtypes[own] for name, own in stored.items() if own in self.dtypes},
        )

    def read_bytes(self, name: str) -> bytes:
        """Return the bytes that a tensor stands for, such as a tokenizer's. Raises WrongFileError where it cannot."""
        if self.dtypes.get(name, "uint8") != "uint8" or len(self.shapes[name]) != 1:
            raise WrongFileError(
                f"{describe_path(self.path)}: {name} holds {self.dtypes.get(name, '')} {list(self.shapes[name])}, "
                f"expected bytes (uint8). Download it, or convert it, again."
            )
        return self.read(name).numpy().tobytes()


def open_tensors(path: Path) -> TensorFile:
    """Open .safetensors, .pth / .pt / .bin / .ckpt (weights only, mapped) or a folder with an index of shards.

    Raises WrongFileError.
    """
    if path.is_dir():
        content = FileContent(path)  # before anything is opened: what is replaced in between shows
        return replace(_open_folder(path), content=content)
    if not path.is_file():
        raise WrongFileError(
            f"{path.name} is not in {path.parent}: the file was moved or deleted. "
            f"Press R in the editor to refresh the list."
        )
    content = FileContent(path)
    opened = _open_safetensors(path) if path.suffix.lower() == ".safetensors" else _open_torch(path)
    return replace(opened, content=content)


def open_streaming(path: Path) -> TensorFile:
    """Open like `open_tensors`, for reading a model once from end to end in bounded memory.

    The file is opened anew after every `STREAMED_WEIGHTS` weights: closing it gives the pages of the mapped file back.
    """
    file = open_tensors(path)
    opened: TensorFile | None = file
    weights = 0

    def read(name: str) -> torch.Tensor:
        nonlocal opened, weights
        opened = opened or open_tensors(path)
        tensor = opened.read(name)
        weights += tensor.numel()
        if weights > STREAMED_WEIGHTS:
            opened, weights = None, 0
        return tensor

    return replace(file, read=read)


def describe_path(path: Path) -> str:
    """Return name and folder, for messages."""
    return f"{path.name} (in {path.parent})"


def fingerprint(path: Path) -> str:
    """Return a text that changes with the name, size or time of the file, or of any file of the folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return " ".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files if file.is_file())


def read_beside(folder: Path, name: str, limit: int = MAX_JSON_LENGTH) -> bytes | None:
    """Return what a file of a folder holds, None where there is none. Raises WrongFileError where it cannot be read."""
    try:
        return read_file(folder / name, limit)
    except ValueError as error:
        raise WrongFileError(f"{name} (in {folder}) cannot be read: {error}. Download it again.") from error


def read_object(content: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object. Raises WrongFileError, which begins with `where`."""
    try:
        found = parse_json(content)
    except ValueError as error:
        raise WrongFileError(f"{where} is not valid JSON ({error}). Download it again.") from error
    if not isinstance(found, dict):
        raise WrongFileError(f"{where} holds a {type(found).__name__}, expected an object. Download it again.")
    return found


def _open_safetensors(path: Path) -> TensorFile:
    try:
        file = SafetensorsReader(path)
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, OSError, RuntimeError) as error:
        raise WrongFileError(
            f"{describe_path(path)} cannot be read as safetensors: {_instead(path) or _damaged(path, error)}."
        ) from error
    return TensorFile(path, file.shapes, file.read, file.metadata, file.dtypes)


def _open_torch(path: Path) -> TensorFile:
    try:
        try:
            tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError:  # files of before torch 1.6 cannot be mapped
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch's own words are not for users: they advise to load code
        held = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            _instead(path)
            or (
                held
                and f"it holds {held[1]}, and only tensors are loaded from such files, never code; "
                f"ask for a .safetensors"
            )
            or _damaged(path, error)
        )
        raise WrongFileError(f"{describe_path(path)} cannot be read as plain weights: {reason}.") from error
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping):
        raise WrongFileError(
            f"{describe_path(path)} holds a {type(tensors).__name__}, expected a plain state dict of tensors."
        )
    other = next(
        (f"{name!r:.80} ({kind})" for name, value in tensors.items() if (kind := _no_weight(name, value))), None
    )
    if other:
        raise WrongFileError(
            f"{describe_path(path)} holds more than tensors, the first is {other}; expected a plain state dict."
        )
    return TensorFile(
        path,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        tensors.__getitem__,
        {},
        {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
    )


def _no_weight(name: Any, value: Any) -> str | None:
    """Return what an entry of a state dict is where it is no named tensor of plain numbers, all of them stored."""
    if not isinstance(name, str):
        return f"its name is of type {type(name).__name__}"
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    if value.layout != torch.strided:
        return f"a {str(value.layout).removeprefix('torch.')} tensor"
    if value.is_quantized:
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    if value.device.type == "meta" or value.untyped_storage().nbytes() < value.numel() * value.element_size():
        return "a tensor without all its values"
    return None


def _open_folder(path: Path) -> TensorFile:
    index = next((path / name for name in INDEX_NAMES if os.path.lexists(path / name)), None)
    if index is None:
        single = next((path / name for name in SINGLE_NAMES if (path / name).is_file()), None)
        if single is None:
            raise WrongFileError(
                f"the folder {describe_path(path)} holds neither {INDEX_NAMES[0]} nor {INDEX_NAMES[1]}: "
                f"it is not a published checkpoint."
            )
        return replace(open_tensors(single), path=path)
    shard_of = read_index(index)
    missing = sorted({shard for shard in shard_of.values() if not (path / shard).is_file()})
    if missing:
        raise WrongFileError(
            f"the folder {describe_path(path)} lacks {len(missing)} of its shards, the first is {missing[0]}. "
            f"Download it again."
        )
    shards = {shard: open_tensors(path / shard) for shard in sorted(set(shard_of.values()))}
    lost = sorted(name for name, shard in shard_of.items() if name not in shards[shard].shapes)
    if lost:
        raise WrongFileError(
            f"the folder {describe_path(path)} is damaged: {shard_of[lost[0]]} does not hold {lost[0]}. "
            f"Download it again."
        )
    return TensorFile(
        path,
        {name: shards[shard].shapes[name] for name, shard in shard_of.items()},
        lambda name: shards[shard_of[name]].read(name),
        {},
        {name: shards[shard].dtypes[name] for name, shard in shard_of.items()},
    )


def read_index(index: Path) -> dict[str, str]:
    """Return the shard of each tensor. Raises WrongFileError where the index is damaged or names a file elsewhere."""
    content = read_beside(index.parent, index.name)
    try:
        shard_of = dict(parse_json(content or b"")["weight_map"])
        outside = sorted(shard for shard in set(shard_of.values()) if Path(shard).name != shard)
    except (ValueError, LookupError, TypeError) as error:
        reason = _instead(index) or "it is not valid JSON with a `weight_map` from tensors to shards; download it again"
        raise WrongFileError(f"{describe_path(index)} cannot be read as an index of shards: {reason}.") from error
    if outside:
        raise WrongFileError(
            f"{describe_path(index)} names a shard that is not beside it, {outside[0]!r}: "
            f"nothing outside the folder is read."
        )
    return shard_of


def _instead(path: Path) -> str | None:
    """Return what a file is instead of weights, after the usual accidents; None where none of them happened."""
    with open(path, "rb") as file:
        begin = file.read(512)
    if not begin:
        return "it is empty; download it again"
    if begin.startswith(b"version https://git-lfs"):
        return "it is git-lfs's pointer to the file, not the file; fetch it with git lfs pull, or download it"
    if begin.lstrip().startswith(b"<"):
        return "it is a web page, not the file; the download was refused, or its address is that of the page"
    if begin.startswith(b"PK\x03\x04") and path.suffix.lower() == ".safetensors":
        return _misnamed(path, "a file of torch.save", ".pth", zipfile.ZipFile)
    if begin[8:10] == b'{"' and path.suffix.lower() != ".safetensors":
        return _misnamed(path, "a safetensors file", ".safetensors", SafetensorsReader)
    return None


def _misnamed(path: Path, kind: str, suffix: str, read: Callable[[Path], Any]) -> str:
    try:
        read(path)
    except (SafetensorError, zipfile.BadZipFile) as error:
        return f"it is {kind} with the wrong name, and {_damaged(path, error).removeprefix('it ')} as {suffix}"
    return f"it is {kind}; rename it to {suffix}"


def _damaged(path: Path, error: Exception) -> str:
    """Return what a library's error means in a few words, and what to do."""
    words = str(error)
    reason = next((reason for part, reason in _REASONS.items() if part in words), "unknown content")
    return f"it is cut short or damaged ({path.stat().st_size:,} bytes; {reason}); download it again"
