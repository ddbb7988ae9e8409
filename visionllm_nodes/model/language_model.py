"""The language model: ComfyUI's LLaMA blocks, with a KV cache that questions about one image share.

Source: VisionLLMv2/visionllmv2/model/modeling_visionllmv2.py, which drives transformers' LlamaForCausalLM. ComfyUI's
own forward takes no block of several new tokens behind cached ones, so the loop over its blocks is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import comfy.model_management
import torch
from comfy.text_encoders import llama
from torch import nn

from ...mulan.boundary.limits import PREFILL_TOKENS
from ...mulan.internvl_chat.chat_language_model import causal_attention, causal_bias


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

    def to(self, device, room: int = 0) -> KVCache:
        """Return the cache on `device`: itself where it is there already, else a copy.

        With `room`, return a copy that takes so many tokens more in place.
        """

        def moved(tensor):
            if not room:
                return tensor.to(device)
            larger = tensor.new_empty(*tensor.shape[:2], self.length + room, tensor.shape[3], device=device)
            larger[:, :, : self.length] = tensor[:, :, : self.length]
            return larger

        return KVCache(tuple((moved(keys), moved(values)) for keys, values in self.layers), self.length)


def visible_tokens(owners: torch.Tensor, count: int) -> torch.Tensor:
    """Return which tokens of one sequence the last `count` may see, bool [count, T].

    owners: int [T], the text that each token belongs to, -1 for what stands before all of them.
    """
    visible = (owners[-count:, None] == owners) | (owners < 0)
    return visible.tril(len(owners) - count)


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
        visible: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        after_layer: Callable[[], None] = lambda: None,
    ) -> tuple[torch.Tensor, KVCache | None]:
        """Run embeddings [B, T, C] behind `past` -> hidden states [B, T, C], and with `use_cache` the cache of both.

        visible: bool [T, past + T], which tokens each may see; by default all that stand before it. positions: int
        [B, T], by default those after `past`. A `past` with room is written in place, behind its length. Many
        embeddings are read in parts, since the attention's mask grows with both.
        """
        count, hidden_states = embeddings.shape[1], []
        for first in range(0, count, PREFILL_TOKENS):
            part = slice(first, first + PREFILL_TOKENS)
            length = past.length if past else 0
            states, past = self._read(
                embeddings[:, part],
                past,
                use_cache or count > PREFILL_TOKENS,
                None if visible is None else visible[part, : length + PREFILL_TOKENS],
                None if positions is None else positions[:, part],
                after_layer,
            )
            hidden_states.append(states)
        return hidden_states[0] if len(hidden_states) == 1 else torch.cat(hidden_states, dim=1), past

    def new_cache(self, room: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """Return an empty cache for one sequence of `room` tokens."""
        shape = 1, self.config.num_key_value_heads, room, self.config.head_dim
        layers = (tuple(torch.empty(shape, dtype=dtype, device=device) for _ in range(2)) for _ in self.layers)
        return KVCache(tuple(cast(tuple[torch.Tensor, torch.Tensor], layer) for layer in layers), 0)

    def _read(
        self,
        embeddings: torch.Tensor,
        past: KVCache | None,
        use_cache: bool,
        visible: torch.Tensor | None,
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
        bias = _attention_bias(length, count, visible, embeddings)
        hidden_states, cached = embeddings, []
        for index, layer in enumerate(self.layers):
            layer_past = (*past.layers[index], length) if past else [] if use_cache else None
            hidden_states, present = layer(
                hidden_states,
                attention_mask=bias,
                freqs_cis=angles,
                optimized_attention=causal_attention,
                past_key_value=layer_past,
            )
            if use_cache:
                cached.append(present[:2])
            after_layer()
        return self.norm(hidden_states), KVCache(tuple(cached), length + count) if use_cache else None

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return float32 logits [..., vocab_size] of hidden states [..., C]."""
        return self.lm_head(hidden_states).float()


def _attention_bias(length: int, count: int, visible: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """Return what `causal_attention` adds to the scores, [1, 1, T, past + T]; None where it needs nothing."""
    if visible is None:
        return causal_bias(length, count, like) if length and count > 1 else None
    return torch.zeros_like(visible, dtype=like.dtype).masked_fill_(~visible, torch.finfo(like.dtype).min / 4)[
        None, None
    ]


def check_interrupt() -> None:
    """Raise ComfyUI's exception where the user has pressed stop; the usual `after_layer`."""
    comfy.model_management.throw_exception_if_processing_interrupted()
