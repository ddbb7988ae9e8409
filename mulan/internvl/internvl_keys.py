"""InternVL-14B's tensors, but for its LLaMA's, in the published checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from ..checkpoints.config import EPS_RANGE, Config
from ..checkpoints.weight_check import shape_of
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


def model_configuration(shapes: Shapes, config: Config) -> ContrastiveConfig:
    """Return the sizes from the tensors' shapes, and the numbers of heads from `config` (config.json), else the
    published ones.

    Raises KeyError where a tensor is missing, ValueError for shapes that no model has, WrongFileError for `config`.
    """
    named = {name.removeprefix(VISION): shape for name, shape in shapes.items() if name.startswith(VISION)}
    vision = intern_vit_keys.configuration(named, config.section("vision_config"))
    text_hidden_size, embedding_size = shape_of(shapes, "text_projection", 2)
    return ContrastiveConfig(vision, text_hidden_size, embedding_size, _pool_heads(config, vision.hidden_size))


def reader_configuration(shapes: Shapes, config: Config) -> ReaderConfig:
    """Return the same for what mode G adds."""
    _, num_queries, hidden_size = shape_of(shapes, QUERIES, 3)
    llama = config.section("qllama_config")
    return ReaderConfig(
        hidden_size=hidden_size,
        vision_hidden_size=shape_of(shapes, f"{VISION}embeddings.class_embedding", 3)[-1],
        num_queries=num_queries,
        num_attention_heads=llama.heads("num_attention_heads", hidden_size, hidden_size // HEAD_DIM),
        layers=tuple(sorted({_layer_index(name) for name in shapes if _is_cross_attention(name)})),
        embedding_size=shape_of(shapes, "text_projection", 2)[1],
        pool_num_heads=_pool_heads(config, hidden_size),
        rms_norm_eps=llama.number("rms_norm_eps", 1e-6, **EPS_RANGE),
    )


def model_sources(config: ContrastiveConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each of the model's."""
    return _sources(ContrastiveModel(config, operations=nn, device="meta"))


def reader_sources(config: ReaderConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each of the reader's."""
    return _sources(QueryReader(config, operations=nn, device="meta"))


def unused(name: str) -> bool:
    """Whether images do without a tensor: it is the LLaMA's own, or of the published matching head."""
    return name.startswith(MATCHING) or name.startswith(LLAMA) and not _is_cross_attention(name)


def _sources(module: nn.Module) -> dict[str, WeightSource]:
    return {name: WeightSource((_published(name),)) for name in module.state_dict()}


def _published(name: str) -> str:
    for pattern, published in _DIFFERENCES:
        if pattern.match(name):
            return pattern.sub(published, name)
    return name


def _pool_heads(config: Config, hidden_size: int) -> int:
    return config.heads("attn_pool_num_heads", hidden_size, POOL_HEADS)


def _is_cross_attention(name: str) -> bool:
    return name.startswith(LLAMA_LAYERS) and ".cross_attn." in name


def _layer_index(name: str) -> int:
    """Return the index of the LLaMA's layer that a tensor belongs to. Raises ValueError where its name has none."""
    index = name.removeprefix(LLAMA_LAYERS).split(".", 1)[0]
    if not index.isdecimal() or len(index) > 4:
        raise ValueError(f"it has tensors of {LLAMA_LAYERS}{index[:40]}, which is no layer")
    return int(index)
