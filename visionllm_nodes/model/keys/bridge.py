"""The bridge (`vl_bridge.`), of its three kinds."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ....mulan.checkpoints.config import Config
from ....mulan.checkpoints.weight_check import shape_of
from ....mulan.checkpoints.weight_source import WeightSource
from ..bridge import Bridge, BridgeConfig
from . import sources_of


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Config) -> BridgeConfig:
    """Return the sizes and the kind, from the tensors' shapes. Raises KeyError where a tensor is missing."""
    if "weight" in shapes:
        out_features, in_features = shape_of(shapes, "weight", 2)
        return BridgeConfig(in_features, out_features, num_layers=1, normed=False)
    normed = len(shapes["0.weight"]) == 1
    out_features, in_features = shape_of(shapes, "1.weight" if normed else "0.weight", 2)
    return BridgeConfig(in_features, out_features, num_layers=2, normed=normed)


def sources(config: BridgeConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each of the bridge's. A single layer is published bare."""
    return sources_of(
        Bridge(config, operations=nn, device="meta"), *([(r"^0\.", "")] if config.num_layers == 1 else [])
    )


def unused(name: str) -> bool:
    """Return False: every tensor is read."""
    return False
