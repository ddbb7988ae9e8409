"""CLIP's names: transformers' CLIPVisionModel under `vis_encoder.`."""

from __future__ import annotations

from collections.abc import Mapping

from ....mulan.checkpoints.weight_source import WeightSource
from ..vision_tower import PATCH, TowerConfig

LAYER = (
    *(f"self_attn.{part}_proj" for part in "qkv"),
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
    "layer_norm1",
    "layer_norm2",
)
_HEAD = 64


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> TowerConfig:
    """Sizes from the tensors; the number of heads from `told` (`vis_encoder_config`), else CLIP's heads of 64."""
    positions, width = shapes["vision_model.embeddings.position_embedding.weight"]
    return TowerConfig(
        width=width,
        feed_forward=shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
        layers=1 + max(int(name.split(".")[3]) for name in shapes if name.startswith("vision_model.encoder.layers.")),
        heads=told.get("num_attention_heads") or width // _HEAD,
        picture=PATCH * round((positions - 1) ** 0.5),
        activation=told.get("hidden_act") or TowerConfig.activation,
    )


def sources(config: TowerConfig) -> dict[str, WeightSource]:
    ours = [
        "embeddings.class_embedding",
        "embeddings.patch_embedding.weight",
        "embeddings.position_embedding.weight",
        *(f"{norm}.{kind}" for norm in ("pre_layrnorm", "post_layernorm") for kind in ("weight", "bias")),
        *(
            f"encoder.layers.{layer}.{part}.{kind}"
            for layer in range(config.layers)
            for part in LAYER
            for kind in ("weight", "bias")
        ),
    ]
    return {f"clip.{name}": WeightSource((f"vision_model.{name}",)) for name in ours}


def unused(name: str) -> bool:
    return name.endswith("position_ids")
