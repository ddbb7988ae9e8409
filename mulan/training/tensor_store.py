"""Tensors that training computes once and keeps: a folder of shards, each written whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec

SHARD_BYTES = 2**28  # tensors that wait in memory for their file
Parts = dict[str, torch.Tensor]


def write_safetensors(path: Path, tensors: Parts, metadata: dict[str, str]) -> None:
    """Write a file whole or not at all, so that an interrupted run keeps the old one. Raises UnwritableError."""
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with SafetensorsWriter(path, specs, metadata) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)


def content_key(text: str) -> str:
    """Return a text's key in a store: 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class TensorStore:
    """A few named tensors under each key; read when asked for, from files that are mapped.

    Several processes may add to one folder, each under keys of its own.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[Path, safe_open] = {}
        self._places: dict[str, tuple[Path, list[str]]] = {}
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def refresh(self) -> None:
        """Find the shards that were written since. Raises ValueError that names a damaged one."""
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else ():
            if path in self._files:
                continue
            try:
                file = safe_open(path, "pt")
            except SafetensorError as error:
                raise ValueError(f"{path} cannot be read ({error}): delete it, it will be made again") from error
            self._files[path] = file
            for name in file.keys():
                self._places.setdefault(name.split(".")[0], (path, []))[1].append(name)

    def read(self, key: str) -> Parts:
        """Return the tensors under a key, by their names."""
        path, names = self._places[key]
        return {name.split(".", 1)[1]: self._files[path].get_tensor(name) for name in names}

    def read_part(self, key: str, name: str) -> torch.Tensor:
        """Return one of the tensors under a key."""
        return self._files[self._places[key][0]].get_tensor(f"{key}.{name}")

    def write(self, entries: dict[str, Parts]) -> None:
        """Write a shard; its name is that of its content."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{key}.{name}": tensor for key, parts in entries.items() for name, tensor in parts.items()}
        write_safetensors(self.folder / f"{content_key(' '.join(entries))}.safetensors", tensors, {})


def fill_store(
    store: TensorStore,
    keys: Sequence[str],
    compute: Callable[[Sequence[int]], Iterable[Parts]],
    batches: Callable[[Sequence[int]], Iterable[Sequence[int]]],
    accelerator,
    report: Callable[[int, int], None],
) -> None:
    """Compute what the store lacks, each process its share. Every process calls it.

    `batches` cuts indices of `keys` into what `compute` takes at once. What is finished is kept when this is
    interrupted. report(done, all) counts keys, in the main process.
    """
    lacking = list({key: index for index, key in enumerate(keys) if key not in store}.values())
    accelerator.wait_for_everyone()  # nobody writes before all know what is lacking
    own = lacking[accelerator.process_index :: accelerator.num_processes]
    pending: dict[str, Parts] = {}
    size, done = 0, 0
    try:
        for batch in batches(own):
            for index, parts in zip(batch, compute(batch), strict=True):
                pending[keys[index]] = parts
                size += sum(tensor.numel() * tensor.element_size() for tensor in parts.values())
            done += len(batch)
            if accelerator.is_main_process:
                report(min(done * accelerator.num_processes, len(lacking)), len(lacking))
            if size >= SHARD_BYTES:
                store.write(pending)
                pending, size = {}, 0
    finally:
        if pending:
            store.write(pending)
    accelerator.wait_for_everyone()
    store.refresh()
