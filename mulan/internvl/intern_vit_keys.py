"""InternViT's tensors in a checkpoint, the 6B one's and the 300M one's.

The modules have the published names, so every tensor is its own source.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

from torch import nn

from ..checkpoints.config import Config
from ..checkpoints.weight_check import count_layers, shape_of
from ..checkpoints.weight_source import WeightSource
from .intern_vit import InternViT, InternViTConfig

HEAD_DIM = 128  # where the configuration does not say how many heads there are


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Config) -> InternViTConfig:
    """Return the sizes and the kind, from the tensors' shapes.

    The number of heads is that of `config` (config.json), else it follows from the 6B one's heads of 128 channels.
    Raises KeyError where a tensor is missing, ValueError for shapes that no tower has.
    """
    hidden_size, _, patch_size, _ = shape_of(shapes, "embeddings.patch_embedding.weight", 4)
    positions = shape_of(shapes, "embeddings.position_embedding", 3)[1]
    if positions < 2:
        raise ValueError("its tower looks at no patches: embeddings.position_embedding has one row")
    return InternViTConfig(
        hidden_size=hidden_size,
        intermediate_size=shape_of(shapes, "encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=count_layers(shapes, "encoder.layers."),
        num_attention_heads=config.heads("num_attention_heads", hidden_size, hidden_size // HEAD_DIM),
        patch_size=patch_size,
        image_size=patch_size * isqrt(positions - 1),
        rms_norm="encoder.layers.0.norm1.bias" not in shapes,
        qk_norm="encoder.layers.0.attn.q_norm.weight" in shapes,
        qkv_bias="encoder.layers.0.attn.qkv.bias" in shapes,
    )


def sources(config: InternViTConfig) -> dict[str, WeightSource]:
    """Return the published tensors of each of the tower's."""
    return {name: WeightSource((name,)) for name in InternViT(config, operations=nn, device="meta").state_dict()}


def unused(name: str) -> bool:
    """Return whether a tensor of the file is known and not needed: there is none."""
    return False
