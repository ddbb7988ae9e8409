"""The language model: ComfyUI's LLaMA blocks, with a KV cache that questions about one image share.

Source: VisionLLMv2/visionllmv2/model/modeling_visionllmv2.py, which drives transformers' LlamaForCausalLM. ComfyUI's
own forward takes no block of several new tokens behind cached ones, so the loop over its blocks is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import optimized_attention_for_device
from comfy.text_encoders import llama
from torch import nn

from ...mulan.boundary.limits import PREFILL_TOKENS
from ...mulan.internvl_chat.chat_language_model import causal_bias


@dataclass
class LanguageConfig(llama.Llama2Config):
    """ComfyUI's configuration with Vicuna's RoPE; `head_dim` is a field (there it is an attribute of the class)."""

    head_dim: int = 128
    rope_theta: float = 10000.0


@dataclass(frozen=True)
class KVCache:
    """Keys and values of `length` tokens, per layer [B, heads, room, head_dim]; `room` may exceed `length`."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    length: int

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    @property
    def room(self) -> int:
        return self.layers[0][0].shape[2]

    def expanded(self, batch: int) -> KVCache:
        """Return the same tokens in front of each of `batch` continuations; nothing is copied."""
        return KVCache(
            tuple((keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)) for keys, values in self.layers),
            self.length,
        )

    def with_room(self, tokens: int) -> KVCache:
        """Return a copy that takes `tokens` more without another copy."""

        def enlarged(tensor):
            room = tensor.new_zeros(*tensor.shape[:2], tokens, tensor.shape[3])
            return torch.cat((tensor[:, :, : self.length], room), dim=2)

        return KVCache(tuple((enlarged(keys), enlarged(values)) for keys, values in self.layers), self.length)

    def to(self, device) -> KVCache:
        """Return the cache on `device`."""
        return KVCache(tuple((keys.to(device), values.to(device)) for keys, values in self.layers), self.length)


class LanguageModel(nn.Module):
    """Embeddings in, hidden states behind the final norm out.

    Weights have LLaMA's names (`layers.0.self_attn.q_proj.weight`...).
    """

    def __init__(self, config: LanguageConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        self.config = config
        self.embed_tokens = operations.Embedding(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = nn.ModuleList(
            llama.TransformerBlock(config, index, device=device, dtype=dtype, ops=operations)
            for index in range(config.num_hidden_layers)
        )
        self.norm = llama.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, device=device, dtype=dtype)
        self.lm_head = operations.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype, device=device)

    def forward(
        self,
        embeddings: torch.Tensor,
        past: KVCache | None = None,
        *,
        use_cache: bool = False,
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        after_layer: Callable[[], None] = lambda: None,
    ) -> tuple[torch.Tensor, KVCache | None]:
        """Run embeddings [B, T, C] behind `past` -> hidden states [B, T, C], and with `use_cache` the cache of both.

        mask: bool [B, past + T], False where no token may look (padding). Padding at the right end needs none: no token
        sees a later one. positions: int [B, T], by default those after `past`. A `past` with room is written in place
        and must not be used again. Many embeddings are read in parts, since the attention's mask grows with both.
        """
        parts = embeddings.split(PREFILL_TOKENS, dim=1)
        if len(parts) == 1 or mask is not None or positions is not None:
            return self._read(embeddings, past, use_cache, mask, positions, after_layer)
        hidden_states = []
        for part in parts:
            states, past = self._read(part, past, True, None, None, after_layer)
            hidden_states.append(states)
        return torch.cat(hidden_states, dim=1), past if use_cache else None

    def _read(
        self,
        embeddings: torch.Tensor,
        past: KVCache | None,
        use_cache: bool,
        mask: torch.Tensor | None,
        positions: torch.Tensor | None,
        after_layer: Callable[[], None],
    ) -> tuple[torch.Tensor, KVCache | None]:
        length, count = past.length if past else 0, embeddings.shape[1]
        if positions is None:
            positions = torch.arange(length, length + count, device=embeddings.device)[None]
        angles = llama.precompute_freqs_cis(
            self.config.head_dim, positions, self.config.rope_theta, device=embeddings.device
        )
        angles = tuple(part.to(embeddings.dtype) for part in angles)
        bias = _attention_bias(length, count, mask, embeddings)
        attention = optimized_attention_for_device(embeddings.device, mask=bias is not None, small_input=True)
        hidden_states, cached = embeddings, []
        for index, layer in enumerate(self.layers):
            layer_past = (*past.layers[index], length) if past else [] if use_cache else None
            hidden_states, present = layer(
                hidden_states,
                attention_mask=bias,
                freqs_cis=angles,
                optimized_attention=attention,
                past_key_value=layer_past,
            )
            if use_cache:
                cached.append(present[:2])
            after_layer()
        return self.norm(hidden_states), KVCache(tuple(cached), length + count) if use_cache else None

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return float32 logits [..., vocab_size] of hidden states [..., C]."""
        return self.lm_head(hidden_states).float()


def _attention_bias(length: int, count: int, mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """Return what attention adds to its scores, [B or 1, 1, T, past + T]; None where every token may see all."""
    if mask is None:
        return None if count == 1 else causal_bias(length, count, like)
    visible = torch.ones(count, length + count, dtype=torch.bool, device=like.device).tril(length)[None, None]
    # Each token sees itself: a row that sees nothing would be NaN.
    itself = torch.eye(count, length + count, dtype=torch.bool, device=like.device).roll(length, dims=1)
    visible = visible & mask[:, None, None, :] | itself
    bias = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
    return bias.masked_fill_(~visible, torch.finfo(like.dtype).min / 4)


def check_interrupt() -> None:
    """Raise ComfyUI's exception where the user has pressed stop; the usual `after_layer`."""
    comfy.model_management.throw_exception_if_processing_interrupted()
