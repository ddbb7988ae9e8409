"""Vicuna (`llm.`): transformers' LlamaForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ....mulan.checkpoints.config import EPS_RANGE, ROPE_RANGE, Config
from ....mulan.checkpoints.weight_check import count_layers, shape_of
from ....mulan.checkpoints.weight_source import WeightSource
from ..language_model import LanguageConfig, LanguageModel
from . import key_value_heads, sources_of

HEAD_DIM = 128  # where the configuration does not say how many heads there are


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Config) -> LanguageConfig:
    """Return the sizes from the tensors' shapes.

    What they do not tell is taken from `config` (`llm_config`), else LLaMA's. Raises KeyError where a tensor is
    missing.
    """
    vocab_size, hidden_size = shape_of(shapes, "model.embed_tokens.weight", 2)
    heads = config.heads("num_attention_heads", hidden_size, hidden_size // HEAD_DIM, even="size of a head")
    rows = shape_of(shapes, "model.layers.0.self_attn.k_proj.weight", 2)[0]
    return LanguageConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=shape_of(shapes, "model.layers.0.mlp.up_proj.weight", 2)[0],
        num_hidden_layers=count_layers(shapes, "model.layers."),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads(config, heads, rows * heads // hidden_size),
        head_dim=hidden_size // heads,
        rms_norm_eps=config.number("rms_norm_eps", LanguageConfig.rms_norm_eps, **EPS_RANGE),
        rope_theta=config.number("rope_theta", LanguageConfig.rope_theta, **ROPE_RANGE),
    )


def sources(config: LanguageConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each of the language model's."""
    return sources_of(LanguageModel(config, operations=nn, device="meta"), (r"^(?!lm_head\.)", "model."))


def unused(name: str) -> bool:
    """Whether it is what some files keep of the rotary embedding: it follows from the number of heads."""
    return name.endswith("rotary_emb.inv_freq")
