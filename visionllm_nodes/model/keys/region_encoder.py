"""The region encoder's tensors under upstream's names (`region_encoder.`)."""

from __future__ import annotations

from collections.abc import Mapping

from ....mulan.checkpoints.weight_source import WeightSource
from ..region_encoder import RegionConfig

NAMES = {
    "conv1": "mask_embedding.0",
    "norm1": "mask_embedding.1",
    "conv2": "mask_embedding.3",
    "norm2": "mask_embedding.4",
    "conv3": "mask_embedding.6",
    "out": "up_dim",
}


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> RegionConfig:
    """All from the tensors. Raises KeyError where one is missing."""
    first, second, width = (shapes[f"{NAMES[conv]}.weight"][0] for conv in ("conv1", "conv2", "conv3"))
    return RegionConfig(widths=(first, second), width=width, out_width=shapes["up_dim.weight"][0])


def sources(config: RegionConfig) -> dict[str, WeightSource]:
    return {
        f"{ours}.{kind}": WeightSource((f"{published}.{kind}",))
        for ours, published in NAMES.items()
        for kind in ("weight", "bias")
    }


def unused(name: str) -> bool:
    return False
