"""The bridge's tensors under upstream's names (`vl_bridge.`), of its three kinds."""

from __future__ import annotations

from collections.abc import Mapping

from ....mulan.checkpoints.weight_source import WeightSource
from ..bridge import BridgeConfig


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> BridgeConfig:
    """All from the tensors. Raises KeyError where one is missing."""
    if "weight" in shapes:
        return BridgeConfig(width=shapes["weight"][1], out_width=shapes["weight"][0], layers=1, normed=False)
    normed = len(shapes["0.weight"]) == 1
    out_width, width = shapes["1.weight" if normed else "0.weight"]
    return BridgeConfig(width=width, out_width=out_width, layers=2, normed=normed)


def sources(config: BridgeConfig) -> dict[str, WeightSource]:
    first = int(config.normed)
    names = {"layers.0": f"{first}.", "layers.1": f"{first + 2}."} if config.layers == 2 else {"layers.0": ""}
    if config.normed:
        names["norm"] = "0."
    return {
        f"{ours}.{kind}": WeightSource((published + kind,))
        for ours, published in names.items()
        for kind in ("weight", "bias")
    }


def unused(name: str) -> bool:
    return False
