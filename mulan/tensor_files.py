"""Opening model files: lazily, names and shapes first; a tensor is read only where it is needed."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class WrongFile(ValueError):
    """A model file that cannot serve; the message says which, what it is, what is expected and where that comes from."""


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file or sharded folder, known by name and shape before any is read."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], torch.Tensor]
    metadata: Mapping[str, str]


def open_tensors(path: Path) -> TensorFile:
    """Opens .safetensors, .pth / .pt / .bin / .ckpt (weights only, mapped) or a folder with an index of shards. Raises WrongFile."""
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise WrongFile(f"{path.name} is not in {path.parent}: the file was moved or deleted. Press R in the editor to refresh the list.")
    if path.suffix.lower() == ".safetensors":
        return _open_safetensors(path)
    return _open_torch(path)


def place(path: Path) -> str:
    return f"{path.name} (in {path.parent})"


def _open_safetensors(path: Path) -> TensorFile:
    try:
        file = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise WrongFile(f"{place(path)} cannot be read as safetensors: {error}. Download it again.") from error
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    return TensorFile(path, shapes, file.get_tensor, file.metadata() or {})


def _open_torch(path: Path) -> TensorFile:
    try:
        try:
            tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError:  # files of before torch 1.6 cannot be mapped
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WrongFile(f"{place(path)} cannot be read as plain weights: {reason}. "
                        f"Only tensors are loaded from such files, never code; ask for a .safetensors.") from error
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise WrongFile(f"{place(path)} holds a {type(tensors).__name__}, expected is a plain state dict of tensors.")
    return TensorFile(path, {name: tuple(t.shape) for name, t in tensors.items()}, tensors.__getitem__, {})


def _open_folder(path: Path) -> TensorFile:
    index = next((path / name for name in INDEX_NAMES if (path / name).is_file()), None)
    if index is None:
        single = next((path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()), None)
        if single is None:
            raise WrongFile(f"the folder {place(path)} holds neither {INDEX_NAMES[0]} nor {INDEX_NAMES[1]}: it is not a published checkpoint.")
        file = open_tensors(single)
        return TensorFile(path, file.shapes, file.read, file.metadata)
    shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    missing = sorted({shard for shard in shard_of.values() if not (path / shard).is_file()})
    if missing:
        raise WrongFile(f"the folder {place(path)} lacks {len(missing)} of its shards, the first is {missing[0]}. Download it again.")
    shards = {shard: open_tensors(path / shard) for shard in sorted(set(shard_of.values()))}
    lost = sorted(name for name, shard in shard_of.items() if name not in shards[shard].shapes)
    if lost:
        raise WrongFile(f"the folder {place(path)} is damaged: {shard_of[lost[0]]} does not hold {lost[0]}. Download it again.")
    shapes = {name: shards[shard].shapes[name] for name, shard in shard_of.items()}
    return TensorFile(path, shapes, lambda name: shards[shard_of[name]].read(name), {})
