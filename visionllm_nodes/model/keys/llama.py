"""Vicuna's names: transformers' LlamaForCausalLM under `llm.`."""

from __future__ import annotations

from collections.abc import Mapping

from ....mulan.checkpoints.weight_source import WeightSource
from ..language_model import LanguageConfig

LAYER = (
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
)


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> LanguageConfig:
    """Sizes from the tensors; the number of heads from `told` (`llm_config`), else LLaMA's heads of 128."""
    vocabulary, width = shapes["model.embed_tokens.weight"]
    heads = told.get("num_attention_heads") or width // 128
    return LanguageConfig(
        vocabulary=vocabulary,
        width=width,
        feed_forward=shapes["model.layers.0.mlp.up_proj.weight"][0],
        layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")),
        heads=heads,
        key_value_heads=shapes["model.layers.0.self_attn.k_proj.weight"][0] * heads // width,
        norm_eps=told.get("rms_norm_eps") or LanguageConfig.norm_eps,
        rope_theta=told.get("rope_theta") or LanguageConfig.rope_theta,
    )


def sources(config: LanguageConfig) -> dict[str, WeightSource]:
    ours = [
        "embed_tokens.weight",
        "norm.weight",
        *(f"layers.{layer}.{part}.weight" for layer in range(config.layers) for part in LAYER),
    ]
    return {
        **{name: WeightSource((f"model.{name}",)) for name in ours},
        "lm_head.weight": WeightSource(("lm_head.weight",)),
    }


def unused(name: str) -> bool:
    return name.endswith("rotary_emb.inv_freq")  # some files keep it; it follows from the number of heads
