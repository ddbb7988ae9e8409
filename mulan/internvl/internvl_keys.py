"""InternVL-14B's tensors, but for its LLaMA's, under upstream's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoints.weight_source import WeightSource
from . import intern_vit_keys
from .contrastive import ContrastiveConfig, ReaderConfig

VISION = "vision_model."
LLAMA = "qllama."
CROSS = f"{LLAMA}model.layers."  # a layer's number, then `.cross_attn.`
QUERIES = "query_tokens"
POOLED = "clip_projector.cross_attn.q.weight"  # no other model has it
MATCHING = "itm_head."  # tells whether a picture and a text belong together; the published scores do without
POOL_HEADS = 16  # where no configuration tells
HEAD = 128  # channels of an attention head of the LLaMA

POOL = {f"norm_{part}.{kind}": f"norm1_{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")}
POOL |= {f"{part}.weight": f"cross_attn.{part}.weight" for part in "qkv"} | {
    f"{part}.bias": f"cross_attn.{part}_bias" for part in "qkv"
}
POOL |= {f"out.{kind}": f"cross_attn.proj.{kind}" for kind in ("weight", "bias")}
CROSS_ATTENTION = {
    "norm": "norm1",
    "picture_norm": "norm2",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "out": "o_proj",
}

Shapes = Mapping[str, tuple[int, ...]]


def model_configuration(shapes: Shapes, told: Mapping[str, Any]) -> ContrastiveConfig:
    """Sizes from the tensors, numbers of heads from config.json (`told`), else upstream's.

    Raises KeyError where a tensor is missing, ValueError for a number of heads that cannot be.
    """
    named = {name.removeprefix(VISION): shape for name, shape in shapes.items() if name.startswith(VISION)}
    tower = intern_vit_keys.configuration(named, told.get("vision_config") or {})
    _check_heads("vision_config.num_attention_heads", tower.heads, tower.width)
    text_width, embedding = shapes["text_projection"]
    return ContrastiveConfig(tower, text_width, embedding, _pool_heads(told, tower.width))


def reader_configuration(shapes: Shapes, told: Mapping[str, Any]) -> ReaderConfig:
    """The same for what mode G adds."""
    _, queries, width = shapes[QUERIES]
    layers = tuple(
        sorted(
            {
                int(name.removeprefix(CROSS).split(".")[0])
                for name in shapes
                if name.startswith(CROSS) and ".cross_attn." in name
            }
        )
    )
    llama = told.get("qllama_config") or {}
    heads = llama.get("num_attention_heads") or width // HEAD
    _check_heads("qllama_config.num_attention_heads", heads, width)
    return ReaderConfig(
        width=width,
        picture_width=shapes[f"{VISION}embeddings.class_embedding"][-1],
        queries=queries,
        heads=heads,
        layers=layers,
        embedding=shapes["text_projection"][1],
        pool_heads=_pool_heads(told, width),
        norm_eps=llama.get("rms_norm_eps") or 1e-6,
    )


def model_sources(config: ContrastiveConfig) -> dict[str, WeightSource]:
    names = {
        "text_projection": "text_projection",
        "logit_scale": "logit_scale",
        **_under("pool.", "clip_projector.", POOL),
    }
    tower = {f"tower.{ours}": source.under(VISION) for ours, source in intern_vit_keys.sources(config.tower).items()}
    return tower | {ours: WeightSource((published,)) for ours, published in names.items()}


def reader_sources(config: ReaderConfig) -> dict[str, WeightSource]:
    names = {"queries": QUERIES, **_under("pool.", "clip_projector2.", POOL)}
    for layer in config.layers:
        names |= {
            f"layers.{layer}.{ours}.weight": f"{CROSS}{layer}.cross_attn.{published}.weight"
            for ours, published in CROSS_ATTENTION.items()
        }
    return {ours: WeightSource((published,)) for ours, published in names.items()}


def unused(name: str) -> bool:
    """Whether a tensor is one that pictures do without: the LLaMA's own, and upstream's matching head."""
    return name.startswith(MATCHING) or name.startswith(LLAMA) and ".cross_attn." not in name


def _under(ours: str, published: str, names: Mapping[str, str]) -> dict[str, str]:
    return {ours + mine: published + theirs for mine, theirs in names.items()}


def _pool_heads(told: Mapping[str, Any], width: int) -> int:
    heads = told.get("attn_pool_num_heads") or POOL_HEADS
    _check_heads("attn_pool_num_heads", heads, width)
    return heads


def _check_heads(name: str, heads: int, width: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"its {name} is {heads}, which states {width} wide cannot be shared among")
