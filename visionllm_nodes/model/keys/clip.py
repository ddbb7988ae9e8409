"""CLIP (`vis_encoder.`): transformers' CLIPVisionModel, whose names ComfyUI's has too."""

from __future__ import annotations

from collections.abc import Mapping

from comfy.clip_model import ACTIVATIONS
from torch import nn

from ....mulan.checkpoints.config import Config
from ....mulan.checkpoints.weight_check import count_layers, shape_of
from ....mulan.checkpoints.weight_source import WeightSource
from ..vision_tower import PATCH_SIZE, TowerConfig, VisionTower
from . import sources_of

HEAD_DIM = 64  # where the configuration does not say how many heads there are


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Config) -> TowerConfig:
    """Return the sizes from the tensors' shapes.

    The number of heads and the activation are those of `config` (`vis_encoder_config`), else CLIP's.
    """
    positions, hidden_size = shape_of(shapes, "vision_model.embeddings.position_embedding.weight", 2)
    if positions < 2:
        raise ValueError("it looks at no patches: vision_model.embeddings.position_embedding.weight has one row")
    return TowerConfig(
        hidden_size=hidden_size,
        intermediate_size=shape_of(shapes, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=count_layers(shapes, "vision_model.encoder.layers."),
        num_attention_heads=config.heads("num_attention_heads", hidden_size, hidden_size // HEAD_DIM),
        image_size=PATCH_SIZE * round((positions - 1) ** 0.5),
        hidden_act=config.choice("hidden_act", tuple(ACTIVATIONS), TowerConfig.hidden_act),
    )


def sources(config: TowerConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each of the tower's."""
    return sources_of(VisionTower(config, operations=nn, device="meta"))


def unused(name: str) -> bool:
    """Whether it is the positions' index, which is recomputed."""
    return name.endswith("position_ids")
