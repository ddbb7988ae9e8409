"""InternLM2's names: the 26B model's `llm.`."""

from __future__ import annotations

from collections.abc import Mapping

from ....mulan.checkpoints import internlm2
from ....mulan.checkpoints.weight_source import WeightSource
from ..language_model import LanguageConfig

HEAD = 128  # channels, where the number of heads is not told
ROPE_THETA = 1e6


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> LanguageConfig:
    """Sizes from the tensors; the number of heads from `told` (`llm_config`), else heads of 128. Raises KeyError where one is missing."""
    vocabulary, width = shapes["model.tok_embeddings.weight"]
    heads = told.get("num_attention_heads") or width // HEAD
    rows = shapes["model.layers.0.attention.wqkv.weight"][0]
    return LanguageConfig(
        vocabulary=vocabulary,
        width=width,
        feed_forward=shapes["model.layers.0.feed_forward.w1.weight"][0],
        layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")),
        heads=heads,
        key_value_heads=(rows * heads // width - heads) // 2,
        norm_eps=told.get("rms_norm_eps") or LanguageConfig.norm_eps,
        rope_theta=told.get("rope_theta") or ROPE_THETA,
    )


def sources(config: LanguageConfig) -> dict[str, WeightSource]:
    return internlm2.sources(config.layers, config.key_value_heads, config.width // config.heads)


def unused(name: str) -> bool:
    return name.endswith("rotary_emb.inv_freq")  # some files keep it; it follows from the number of heads
