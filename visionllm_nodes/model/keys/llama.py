"""Vicuna (`llm.`): transformers' LlamaForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ....mulan.checkpoints.weight_source import WeightSource
from ..language_model import LanguageConfig, LanguageModel
from . import count, sources_of

HEAD_DIM = 128  # where the configuration does not say how many heads there are


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> LanguageConfig:
    """Return the sizes from the tensors' shapes.

    What they do not tell is taken from `config` (`llm_config`), else LLaMA's. Raises KeyError where a tensor is
    missing.
    """
    vocab_size, hidden_size = shapes["model.embed_tokens.weight"]
    heads = config.get("num_attention_heads") or hidden_size // HEAD_DIM
    return LanguageConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=shapes["model.layers.0.mlp.up_proj.weight"][0],
        num_hidden_layers=count(shapes, "model.layers."),
        num_attention_heads=heads,
        num_key_value_heads=shapes["model.layers.0.self_attn.k_proj.weight"][0] * heads // hidden_size,
        head_dim=hidden_size // heads,
        rms_norm_eps=config.get("rms_norm_eps") or LanguageConfig.rms_norm_eps,
        rope_theta=config.get("rope_theta") or LanguageConfig.rope_theta,
    )


def sources(config: LanguageConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each of the language model's."""
    return sources_of(LanguageModel(config, operations=nn, device="meta"), (r"^(?!lm_head\.)", "model."))


def unused(name: str) -> bool:
    """Whether it is what some files keep of the rotary embedding: it follows from the number of heads."""
    return name.endswith("rotary_emb.inv_freq")
