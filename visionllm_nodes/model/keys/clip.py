"""CLIP (`vis_encoder.`): transformers' CLIPVisionModel, whose names ComfyUI's has too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ....mulan.checkpoints.weight_source import WeightSource
from ..vision_tower import PATCH_SIZE, TowerConfig, VisionTower
from . import count, sources_of

HEAD_DIM = 64  # where the configuration does not say how many heads there are


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> TowerConfig:
    """Return the sizes from the tensors' shapes.

    The number of heads and the activation are those of `config` (`vis_encoder_config`), else CLIP's.
    """
    positions, hidden_size = shapes["vision_model.embeddings.position_embedding.weight"]
    return TowerConfig(
        hidden_size=hidden_size,
        intermediate_size=shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=count(shapes, "vision_model.encoder.layers."),
        num_attention_heads=config.get("num_attention_heads") or hidden_size // HEAD_DIM,
        image_size=PATCH_SIZE * round((positions - 1) ** 0.5),
        hidden_act=config.get("hidden_act") or TowerConfig.hidden_act,
    )


def sources(config: TowerConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each of the tower's."""
    return sources_of(VisionTower(config, operations=nn, device="meta"))


def unused(name: str) -> bool:
    """Whether it is the positions' index, which is recomputed."""
    return name.endswith("position_ids")
