"""The region encoder (`region_encoder.`)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ....mulan.checkpoints.config import Config
from ....mulan.checkpoints.weight_check import shape_of
from ....mulan.checkpoints.weight_source import WeightSource
from ..region_encoder import RegionConfig, RegionEncoder
from . import sources_of


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Config) -> RegionConfig:
    """Return the sizes, from the tensors' shapes. Raises KeyError where a tensor is missing."""
    first, second, vision_hidden_size = (shape_of(shapes, f"mask_embedding.{conv}.weight", 4)[0] for conv in (0, 3, 6))
    return RegionConfig((first, second), vision_hidden_size, hidden_size=shape_of(shapes, "up_dim.weight", 2)[0])


def sources(config: RegionConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each of the encoder's."""
    return sources_of(RegionEncoder(config, operations=nn, device="meta"))


def unused(name: str) -> bool:
    """Return False: every tensor is read."""
    return False
