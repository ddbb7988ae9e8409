"""The language models of the chat files: their sizes, and where each tensor of ComfyUI's LLaMA comes from.

Qwen2, Qwen3, InternLM2 and LLaMA are one network on ComfyUI's blocks, with or without biases and norms of queries and
keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy.text_encoders import llama
from torch import nn

from . import internlm2
from .chat_names import LANGUAGE
from .config import EPS_RANGE, MAX_HEADS, ROPE_RANGE, Config
from .weight_check import count_layers, shape_of
from .weight_source import WeightSource

FIRST = f"{LANGUAGE}model.layers.0."
HEAD_NORM = "gemma3"  # ComfyUI's name for a norm over each head
# `model_type` in config.json -> what stands for entries that it leaves out: transformers' defaults
LANGUAGES: dict[str, dict[str, Any]] = {
    "qwen2": {"num_attention_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 32768},
    "qwen3": {
        "num_attention_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 32768,
        "head_dim": 128,
    },
    "llama": {"num_attention_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 2048},
    "internlm2": {"num_attention_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 2048},
}
# dynamic: plain up to max_position_embeddings, and longer prompts are refused
PLAIN_ROPE = ("default", "dynamic")
MAX_HEAD_DIM, MAX_POSITIONS = 1024, 2**24


@dataclass
class LanguageConfig(llama.Llama2Config):
    """ComfyUI's configuration, with the entries as fields that are attributes of its class.

    `max_position_embeddings`: the tokens that the model was trained to read. Without `lm_head` the embedding table also
    writes tokens (tied).
    """

    head_dim: int = 128
    qkv_bias: bool = False  # Qwen2
    q_norm: str | None = None  # `HEAD_NORM` in Qwen3
    k_norm: str | None = None


def language_section(config: Config) -> Config:
    """Return what a chat model's config.json says of its language model.

    Raises WrongFileError where that is none of `LANGUAGES`.
    """
    language = config.section("llm_config" if "llm_config" in config else "text_config")
    language.choice("model_type", tuple(LANGUAGES), advice="Choose another size, such as InternVL3-1B, -2B, -8B.")
    return language


def language_config(shapes: Mapping[str, tuple[int, ...]], config: Config) -> LanguageConfig:
    """Return the sizes, from the tensors' shapes (OpenGVLab's names) and else from what `language_section` returns.

    Raises KeyError where a tensor is missing, ValueError for shapes, WrongFileError for `config`.
    """
    kind = config.text("model_type")
    rope = config.section("rope_parameters")
    scaling = config.section("rope_scaling") if "rope_scaling" in config else rope
    scaling.choice("rope_type" if "rope_type" in scaling else "type", PLAIN_ROPE, PLAIN_ROPE[0])
    config = config.with_defaults({**LANGUAGES[kind], **rope.entries})
    packed = f"{FIRST}attention.wqkv.weight" in shapes
    embeddings, gate = ("tok_embeddings", "feed_forward.w1") if packed else ("embed_tokens", "mlp.gate_proj")
    vocab_size, hidden_size = shape_of(shapes, f"{LANGUAGE}model.{embeddings}.weight", 2)
    heads = config.integer("num_attention_heads", high=MAX_HEADS)
    head_dim = config.integer("head_dim", hidden_size // heads or None, high=MAX_HEAD_DIM)
    rows = (
        shape_of(shapes, f"{FIRST}attention.wqkv.weight", 2)[0]
        if packed
        else heads * head_dim + 2 * shape_of(shapes, f"{FIRST}self_attn.k_proj.weight", 2)[0]
    )
    key_value_heads = (rows // head_dim - heads) // 2
    if head_dim % 2 or key_value_heads < 1 or heads % key_value_heads:
        raise config.wrong("num_attention_heads", f"a number of heads that fits the tensors (heads of {head_dim})")
    head_norm = HEAD_NORM if f"{FIRST}self_attn.q_norm.weight" in shapes else None
    return LanguageConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=shape_of(shapes, f"{FIRST}{gate}.weight", 2)[0],
        num_hidden_layers=count_layers(shapes, f"{LANGUAGE}model.layers."),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        rms_norm_eps=config.number("rms_norm_eps", **EPS_RANGE),
        rope_theta=config.number("rope_theta", **ROPE_RANGE),
        max_position_embeddings=config.integer("max_position_embeddings", high=MAX_POSITIONS),
        qkv_bias=f"{FIRST}self_attn.q_proj.bias" in shapes,
        q_norm=head_norm,
        k_norm=head_norm,
        lm_head=bool({f"{LANGUAGE}lm_head.weight", f"{LANGUAGE}output.weight"} & shapes.keys()),
    )


def language_sources(config: LanguageConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, WeightSource]:
    """Return the published tensors of each of ComfyUI's LLaMA, both behind `LANGUAGE`."""
    if f"{FIRST}attention.wqkv.weight" in shapes:
        as_llama = internlm2.sources(config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
        return {f"{LANGUAGE}model.{name}": source.under(LANGUAGE) for name, source in as_llama.items()}
    names = llama.Llama2_(config, device="meta", ops=nn).state_dict()
    # ComfyUI's LLaMA has the head inside; it is published beside it
    at = {name: f"{LANGUAGE}{'' if name.startswith('lm_head.') else 'model.'}{name}" for name in names}
    return {f"{LANGUAGE}model.{name}": WeightSource((published,)) for name, published in at.items()}
