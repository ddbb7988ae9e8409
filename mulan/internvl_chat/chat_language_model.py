"""The language model: Qwen2, Qwen3, InternLM2 and LLaMA are one network on the host's blocks, with or without biases and norms of queries, keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from comfy.text_encoders import llama
from torch import nn


@dataclass(frozen=True)
class LanguageConfig:
    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    key_value_heads: int
    head: int  # channels of an attention head
    norm_eps: float
    rope_theta: float
    longest: int  # tokens that it was trained to read
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3
    tied: bool = False  # words are read and written by one table

    def for_host(self) -> llama.Llama2Config:
        config = llama.Llama2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            max_position_embeddings=self.longest,
            rms_norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
            lm_head=not self.tied,
        )
        config.head_dim, config.qkv_bias = self.head, self.qkv_bias  # class attributes of the host's, not fields
        config.q_norm = config.k_norm = "gemma3" if self.qk_norm else None  # the host's name for a norm over each head
        return config


class Language(llama.BaseQwen3, llama.BaseGenerate, nn.Module):
    """The host's writing loop, which raises ArithmeticError where the weights are damaged. `listener` is told all ids so far after each of them."""

    listener: Callable[[list[int]], None] | None = None

    def __init__(self, config: LanguageConfig, *, operations, dtype=None, device=None):
        super().__init__()
        self.model = llama.Llama2_(config.for_host(), device=device, dtype=dtype, ops=operations)

    def sample_token(
        self, logits, temperature, top_k, top_p, min_p, repetition_penalty, token_history, *arguments, **options
    ):
        if not logits.isfinite().all():
            raise ArithmeticError("numbers that are not finite")
        token = super().sample_token(
            logits, temperature, top_k, top_p, min_p, repetition_penalty, token_history, *arguments, **options
        )
        if self.listener is not None:
            self.listener([*token_history, int(token)])
        return token
