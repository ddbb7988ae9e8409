"""InternViT's tensors under upstream's names (`vis_encoder.` of the 26B model)."""
from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

from .intern_vit import InternViTConfig
from ..published import Source

HEAD = 128  # channels, where the number of heads is not told
LAYER = {
    "norm1.weight": "norm1.weight", "norm2.weight": "norm2.weight", "scale1": "ls1", "scale2": "ls2",
    "attention.qkv.weight": "attn.qkv.weight", "attention.q_norm.weight": "attn.q_norm.weight", "attention.k_norm.weight": "attn.k_norm.weight",
    "attention.out.weight": "attn.proj.weight", "attention.out.bias": "attn.proj.bias",
    "feed_forward.up.weight": "mlp.fc1.weight", "feed_forward.up.bias": "mlp.fc1.bias",
    "feed_forward.down.weight": "mlp.fc2.weight", "feed_forward.down.bias": "mlp.fc2.bias",
}


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> InternViTConfig:
    """Sizes from the tensors; the number of heads from `told` (`vis_encoder_config`), else heads of 128. Raises KeyError where one is missing."""
    width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
    return InternViTConfig(
        width=width, feed_forward=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers.")),
        heads=told.get("num_attention_heads") or width // HEAD, patch=patch,
        picture=patch * isqrt(shapes["embeddings.position_embedding"][1] - 1),
    )


def sources(config: InternViTConfig) -> dict[str, Source]:
    names = {"class_token": "embeddings.class_embedding", "positions": "embeddings.position_embedding",
             "patch.weight": "embeddings.patch_embedding.weight", "patch.bias": "embeddings.patch_embedding.bias"}
    for layer in range(config.layers):
        names |= {f"layers.{layer}.{ours}": f"encoder.layers.{layer}.{published}" for ours, published in LAYER.items()}
    return {ours: Source((published,)) for ours, published in names.items()}


def unused(name: str) -> bool:
    return False
