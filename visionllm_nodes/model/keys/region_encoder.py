"""The region encoder (`region_encoder.`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ....mulan.checkpoints.weight_source import WeightSource
from ..region_encoder import RegionConfig, RegionEncoder
from . import sources_of


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> RegionConfig:
    """Return the sizes, from the tensors' shapes. Raises KeyError where a tensor is missing."""
    first, second, vision_hidden_size = (shapes[f"mask_embedding.{conv}.weight"][0] for conv in (0, 3, 6))
    return RegionConfig((first, second), vision_hidden_size, hidden_size=shapes["up_dim.weight"][0])


def sources(config: RegionConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each of the encoder's."""
    return sources_of(RegionEncoder(config, operations=nn, device="meta"))


def unused(name: str) -> bool:
    """Return False: every tensor is read."""
    return False
