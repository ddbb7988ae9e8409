"""The language model: Qwen2, Qwen3, InternLM2 and LLaMA are one network on ComfyUI's blocks, with or without biases and
norms of queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy.text_encoders import llama
from torch import nn

HEAD_NORM = "gemma3"  # ComfyUI's name for a norm over each head


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


class LanguageModel(llama.BaseQwen3, llama.BaseGenerate, nn.Module):
    """ComfyUI's generation loop. `on_token` is called after each token with all ids so far.

    Raises ArithmeticError where the logits are not finite: the weights are damaged.
    """

    on_token: Callable[[list[int]], None] | None = None

    def __init__(self, config: LanguageConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        self.model = llama.Llama2_(config, device=device, dtype=dtype, ops=operations)

    def sample_token(
        self, logits, temperature, top_k, top_p, min_p, repetition_penalty, token_history, *arguments, **options
    ):
        if not logits.isfinite().all():
            raise ArithmeticError("logits that are not finite")
        token = super().sample_token(
            logits, temperature, top_k, top_p, min_p, repetition_penalty, token_history, *arguments, **options
        )
        if self.on_token is not None:
            self.on_token([*token_history, int(token)])
        return token
