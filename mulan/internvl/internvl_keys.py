"""InternVL-14B's tensors, but for its LLaMA's, in the published checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..checkpoints.weight_source import WeightSource
from . import intern_vit_keys
from .contrastive import ContrastiveConfig, ContrastiveModel, QueryReader, ReaderConfig

VISION = "vision_model."
LLAMA = "qllama."
LLAMA_LAYERS = f"{LLAMA}model.layers."  # a layer's index follows
QUERIES = "query_tokens"
POOLED = "clip_projector.cross_attn.q.weight"  # no other model has it
MATCHING = "itm_head."  # classifies whether an image and a text belong together; the published scores do without
POOL_HEADS = 16  # where the configuration does not say
HEAD_DIM = 128  # of the LLaMA, likewise

# What is named otherwise in our modules: pattern -> the published name
_DIFFERENCES = (
    (re.compile(r"(clip_projector2?\.cross_attn\.[qkv])\.bias"), r"\1_bias"),
    (re.compile(r"layers\.(\d+)\."), rf"{LLAMA_LAYERS}\1.cross_attn."),  # the reader's: in the LLaMA's layers
)

Shapes = Mapping[str, tuple[int, ...]]


def model_configuration(shapes: Shapes, config: Mapping[str, Any]) -> ContrastiveConfig:
    """Return the sizes from the tensors' shapes, and the numbers of heads from `config` (config.json), else the
    published ones.

    Raises KeyError where a tensor is missing, ValueError for a number of heads that does not divide the hidden size.
    """
    named = {name.removeprefix(VISION): shape for name, shape in shapes.items() if name.startswith(VISION)}
    vision = intern_vit_keys.configuration(named, config.get("vision_config") or {})
    _check_heads("vision_config.num_attention_heads", vision.num_attention_heads, vision.hidden_size)
    text_hidden_size, embedding_size = shapes["text_projection"]
    return ContrastiveConfig(vision, text_hidden_size, embedding_size, _pool_heads(config, vision.hidden_size))


def reader_configuration(shapes: Shapes, config: Mapping[str, Any]) -> ReaderConfig:
    """Return the same for what mode G adds."""
    _, num_queries, hidden_size = shapes[QUERIES]
    layers = {
        int(name.removeprefix(LLAMA_LAYERS).split(".")[0])
        for name in shapes
        if name.startswith(LLAMA_LAYERS) and ".cross_attn." in name
    }
    llama = config.get("qllama_config") or {}
    heads = llama.get("num_attention_heads") or hidden_size // HEAD_DIM
    _check_heads("qllama_config.num_attention_heads", heads, hidden_size)
    return ReaderConfig(
        hidden_size=hidden_size,
        vision_hidden_size=shapes[f"{VISION}embeddings.class_embedding"][-1],
        num_queries=num_queries,
        num_attention_heads=heads,
        layers=tuple(sorted(layers)),
        embedding_size=shapes["text_projection"][1],
        pool_num_heads=_pool_heads(config, hidden_size),
        rms_norm_eps=llama.get("rms_norm_eps") or 1e-6,
    )


def model_sources(config: ContrastiveConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each of the model's."""
    return _sources(ContrastiveModel(config, operations=nn, device="meta"))


def reader_sources(config: ReaderConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each of the reader's."""
    return _sources(QueryReader(config, operations=nn, device="meta"))


def unused(name: str) -> bool:
    """Whether images do without a tensor: it is the LLaMA's own, or of the published matching head."""
    return name.startswith(MATCHING) or name.startswith(LLAMA) and ".cross_attn." not in name


def _sources(module: nn.Module) -> dict[str, WeightSource]:
    return {name: WeightSource((_published(name),)) for name in module.state_dict()}


def _published(name: str) -> str:
    for pattern, published in _DIFFERENCES:
        if pattern.match(name):
            return pattern.sub(published, name)
    return name


def _pool_heads(config: Mapping[str, Any], hidden_size: int) -> int:
    heads = config.get("attn_pool_num_heads") or POOL_HEADS
    _check_heads("attn_pool_num_heads", heads, hidden_size)
    return heads


def _check_heads(name: str, heads: int, hidden_size: int) -> None:
    if heads < 1 or hidden_size % heads:
        raise ValueError(f"its {name} is {heads}, which does not divide the hidden size of {hidden_size}")
