"""What each part of a checkpoint is: its sizes, and which published tensors each of ours is made of.

Modules have the published names, so that a tensor's source is the part's prefix and our own key. Each file here holds
what its part needs beyond that. A part's file has `configuration` (shapes and config.json -> the part's config),
`sources` (our keys -> published ones, below the part's prefix) and `unused` (published names that no module reads).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from ....mulan.checkpoints.config import Config
from ....mulan.checkpoints.weight_source import WeightSource
from ..fusion import EncoderConfig
from ..pyramid import BACKBONE_MAPS, NUM_GROUPS

Rename = tuple[str, str | Callable[[re.Match], str]]  # a regular expression and what it becomes, as re.sub takes them

TEMPERATURE_RANGE = {"low": 1e-3, "high": 1e6}  # of the positions in a decoder's image

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


def key_value_heads(config: Config, heads: int, found: int) -> int:
    """Return the number of a language model's heads of keys and values that its tensors have.

    Raises WrongFileError where the number of heads that `config` has does not fit it.
    """
    if found < 1 or heads % found:
        raise config.wrong("num_attention_heads", f"a multiple of the {found} heads of keys and values in the tensors")
    return found


def encoder_configuration(
    config: Config,
    heads_name: str,
    default_heads: int,
    *,
    level_embed: tuple[int, int],
    num_layers: int,
    intermediate_size: int,
    text_intermediate_size: int,
    fusion_hidden_size: int,
    attention_weights: int,
) -> EncoderConfig:
    """Return a decoder's encoder's sizes. `attention_weights`: their rows, one per head, level and point.

    Raises ValueError where the shapes do not agree, WrongFileError where the number of heads does not fit them.
    """
    num_levels, hidden_size = level_embed
    if hidden_size % NUM_GROUPS or num_levels < BACKBONE_MAPS:
        raise ValueError(
            f"its level_embed has the shape {list(level_embed)}, expected {BACKBONE_MAPS} rows or more of a multiple "
            f"of {NUM_GROUPS} channels"
        )
    num_heads = config.heads(heads_name, hidden_size, default_heads, even="number")
    if fusion_hidden_size % (num_heads // 2):
        raise config.wrong(heads_name, f"a number whose half divides {fusion_hidden_size}")
    return EncoderConfig(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=intermediate_size,
        text_num_heads=num_heads // 2,
        text_intermediate_size=text_intermediate_size,
        fusion_num_heads=num_heads // 2,
        fusion_hidden_size=fusion_hidden_size,
        num_levels=num_levels,
        num_points=attention_weights // (num_heads * num_levels),
    )
