"""Checkpoints in shards, as they are published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def save_shards(folder: Path, tensors: Mapping[str, torch.Tensor], suffix: str = ".safetensors") -> None:
    """The tensors by turns in two shards, .safetensors or .bin, with their index."""
    stem, save = ("model", save_file) if suffix == ".safetensors" else ("pytorch_model", torch.save)
    names, shard_of = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"{stem}-{number:05}-of-00002{suffix}"
        save({name: tensors[name] for name in part}, folder / shard)
        shard_of |= dict.fromkeys(part, shard)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}), "utf-8")


def shard(folder: Path) -> Path:
    """Cuts the folder's model.safetensors in two."""
    whole = folder / "model.safetensors"
    save_shards(folder, load_file(whole))
    whole.unlink()
    return folder
