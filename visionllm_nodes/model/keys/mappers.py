"""The mappers' tensors under upstream's names (`sd.` and `ip2p.`)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ....mulan.checkpoints.weight_source import WeightSource
from ..mappers import Mapper, MapperConfig

QUERIES, PROJECTION, TRANSFORMER = "llm2sd_mapper_queries", "emb_proj.", "llm2sd_mapper."


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> MapperConfig:
    """All from the tensors. Raises KeyError where one is missing."""
    _, queries, width = shapes[QUERIES]
    return MapperConfig(
        text_width=shapes[f"{PROJECTION}0.weight"][1],
        width=width,
        queries=queries,
        feed_forward=shapes[f"{TRANSFORMER}encoder.layers.0.linear1.weight"][0],
    )


def sources(config: MapperConfig) -> dict[str, WeightSource]:
    def published(ours: str) -> str:
        if ours == "queries":
            return QUERIES
        ours = ours.replace("in_proj.", "in_proj_")  # torch.nn.MultiheadAttention's packed projection
        return (
            ours.replace("proj.", PROJECTION, 1)
            if ours.startswith("proj.")
            else ours.replace("transformer.", TRANSFORMER, 1)
        )

    return {
        ours: WeightSource((published(ours),)) for ours in Mapper(config, operations=nn, device="meta").state_dict()
    }


def unused(name: str) -> bool:
    """The diffusion model itself, which the host loads from a checkpoint of its own."""
    return name.startswith(("sd_text_encoder.", "sd_vae.", "sd_unet."))
