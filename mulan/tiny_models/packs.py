"""A pack: the trained tensors of tiny models in one small file, a .safetensors file within gzip.

Most weights are codes of 8 bits with a step per row; compressed, about 6 bits are left of each. What a code stands for
is rounded to float16, so that every machine unpacks the same. The other tensors are as they were trained.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load

STEPS = ".steps"  # behind a tensor's name: what one code of each of its rows stands for


def pack_path(name: str) -> Path:
    """Return the file of a pack."""
    return Path(__file__).with_name(f"{name}.safetensors.gz")


def pack_version(path: Path) -> str:
    """Return a short text that changes with the pack."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_pack(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors of a pack and its metadata."""
    content = gzip.decompress(path.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return decode(load(content)), header["__metadata__"]


def decode(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights that codes and steps stand for, in float16, and the other tensors as they are."""
    tensors = {}
    for name, tensor in stored.items():
        steps = stored.get(name + STEPS)
        if steps is not None:
            tensor = (tensor * steps.view(-1, *[1] * (tensor.ndim - 1))).half()
        if not name.endswith(STEPS):
            tensors[name] = tensor
    return tensors
