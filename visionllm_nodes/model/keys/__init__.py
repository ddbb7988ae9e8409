"""What each part of a checkpoint is: its sizes, and which published tensors each of ours is made of.

Modules have the published names, so that a tensor's source is the part's prefix and our own key. Each file here holds
what its part needs beyond that. A part's file has `configuration` (shapes and config.json -> the part's config),
`sources` (our keys -> published ones, below the part's prefix) and `unused` (published names that no module reads).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from ....mulan.checkpoints.weight_source import WeightSource

Rename = tuple[str, str | Callable[[re.Match], str]]  # a regular expression and what it becomes, as re.sub takes them

# torch.nn.MultiheadAttention's packed projection is no module of its own; here it is a Linear like any other.
PACKED: Rename = (r"\.in_proj\.", ".in_proj_")


def sources_of(module: nn.Module, *renames: Rename) -> dict[str, WeightSource]:
    """Return the published tensor of each tensor of `module`.

    Its name is our own key, changed by `renames` in turn.
    """
    return {key: WeightSource((rename(key, renames),)) for key in module.state_dict()}


def rename(key: str, renames: Iterable[Rename]) -> str:
    """Apply regular expressions and their replacements in turn."""
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def below(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Return how many modules are numbered behind `prefix` ("encoder.layers.")."""
    return 1 + max((int(name.split(".", 1)[0]) for name in below(prefix, shapes)), default=-1)
