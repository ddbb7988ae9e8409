"""InternLM2's names: the 26B model's `llm.`."""

from __future__ import annotations

from collections.abc import Mapping

from ....mulan.checkpoints import internlm2
from ....mulan.checkpoints.config import EPS_RANGE, ROPE_RANGE, Config
from ....mulan.checkpoints.weight_check import count_layers, shape_of
from ....mulan.checkpoints.weight_source import WeightSource
from ..language_model import LanguageConfig
from . import key_value_heads

HEAD_DIM = 128  # where the configuration does not say how many heads there are
ROPE_THETA = 1e6


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Config) -> LanguageConfig:
    """Return the sizes from the tensors' shapes, what they do not tell from `config` (`llm_config`), else heads of 128.

    Raises KeyError where a tensor is missing.
    """
    vocab_size, hidden_size = shape_of(shapes, "model.tok_embeddings.weight", 2)
    heads = config.heads("num_attention_heads", hidden_size, hidden_size // HEAD_DIM, even="size of a head")
    rows = shape_of(shapes, "model.layers.0.attention.wqkv.weight", 2)[0]
    return LanguageConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=shape_of(shapes, "model.layers.0.feed_forward.w1.weight", 2)[0],
        num_hidden_layers=count_layers(shapes, "model.layers."),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads(config, heads, (rows * heads // hidden_size - heads) // 2),
        head_dim=hidden_size // heads,
        rms_norm_eps=config.number("rms_norm_eps", LanguageConfig.rms_norm_eps, **EPS_RANGE),
        rope_theta=config.number("rope_theta", ROPE_THETA, **ROPE_RANGE),
    )


def sources(config: LanguageConfig) -> dict[str, WeightSource]:
    """Return the published tensors of each of the language model's: queries, keys and values are packed."""
    return internlm2.sources(config.num_hidden_layers, config.num_key_value_heads, config.head_dim)


def unused(name: str) -> bool:
    """Whether it is what some files keep of the rotary embedding: it follows from the number of heads."""
    return name.endswith("rotary_emb.inv_freq")
