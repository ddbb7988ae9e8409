"""InternViT's tensors under upstream's names, of the 6B one and of the 300M one."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

from ..checkpoints.weight_source import WeightSource
from .intern_vit import InternViTConfig

HEAD = 128  # channels, where the number of heads is not told
LAYER = {
    "norm1.weight": "norm1.weight",
    "norm2.weight": "norm2.weight",
    "scale1": "ls1",
    "scale2": "ls2",
    "attention.qkv.weight": "attn.qkv.weight",
    "attention.q_norm.weight": "attn.q_norm.weight",
    "attention.k_norm.weight": "attn.k_norm.weight",
    "attention.out.weight": "attn.proj.weight",
    "attention.out.bias": "attn.proj.bias",
    "feed_forward.up.weight": "mlp.fc1.weight",
    "feed_forward.up.bias": "mlp.fc1.bias",
    "feed_forward.down.weight": "mlp.fc2.weight",
    "feed_forward.down.bias": "mlp.fc2.bias",
    "norm1.bias": "norm1.bias",
    "norm2.bias": "norm2.bias",
    "attention.qkv.bias": "attn.qkv.bias",
}


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> InternViTConfig:
    """Sizes and kind from the tensors; the number of heads from `told`, else the 6B one's heads of 128. Raises KeyError where one is missing."""
    width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
    return InternViTConfig(
        width=width,
        feed_forward=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers.")),
        heads=told.get("num_attention_heads") or width // HEAD,
        patch=patch,
        picture=patch * isqrt(shapes["embeddings.position_embedding"][1] - 1),
        rms_norm="encoder.layers.0.norm1.bias" not in shapes,
        qk_norm="encoder.layers.0.attn.q_norm.weight" in shapes,
        qkv_bias="encoder.layers.0.attn.qkv.bias" in shapes,
    )


def sources(config: InternViTConfig) -> dict[str, WeightSource]:
    names = {
        "class_token": "embeddings.class_embedding",
        "positions": "embeddings.position_embedding",
        "patch.weight": "embeddings.patch_embedding.weight",
        "patch.bias": "embeddings.patch_embedding.bias",
    }
    lacks = {
        "norm1.bias": config.rms_norm,
        "norm2.bias": config.rms_norm,
        "attention.qkv.bias": not config.qkv_bias,
        "attention.q_norm.weight": not config.qk_norm,
        "attention.k_norm.weight": not config.qk_norm,
    }
    for layer in range(config.layers):
        names |= {
            f"layers.{layer}.{ours}": f"encoder.layers.{layer}.{published}"
            for ours, published in LAYER.items()
            if not lacks.get(ours)
        }
    return {ours: WeightSource((published,)) for ours, published in names.items()}


def unused(name: str) -> bool:
    return False
