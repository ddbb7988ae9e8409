"""The language model: the host's LLaMA blocks, with a cache of keys and values that questions about one picture share.

Source: VisionLLMv2/visionllmv2/model/modeling_visionllmv2.py, which drives transformers' LlamaForCausalLM; the host's own forward takes no
block of several new tokens behind cached ones, so the loop over its blocks is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.ldm.modules.attention import optimized_attention_for_device
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
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def for_host(self) -> llama.Llama2Config:
        config = llama.Llama2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            rms_norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
        )
        config.head_dim = self.width // self.heads  # a class attribute of the host's, not a field
        return config


@dataclass(frozen=True)
class KeyValues:
    """What the layers keep of `length` tokens: per layer keys and values [B, heads, room, head width], where `room` may exceed `length`."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    length: int

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def repeated(self, batch: int) -> KeyValues:
        """The same tokens before each of `batch` continuations; nothing is copied."""
        return KeyValues(
            tuple((keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)) for keys, values in self.layers),
            self.length,
        )

    def with_room(self, more: int) -> KeyValues:
        """A copy that takes `more` tokens without copying again."""

        def larger(tensor):
            return torch.cat(
                (tensor[:, :, : self.length], tensor.new_zeros(*tensor.shape[:2], more, tensor.shape[3])), dim=2
            )

        return KeyValues(tuple((larger(keys), larger(values)) for keys, values in self.layers), self.length)

    def to(self, device) -> KeyValues:
        return KeyValues(tuple((keys.to(device), values.to(device)) for keys, values in self.layers), self.length)


class LanguageModel(nn.Module):
    """Embeddings in, hidden states behind the final norm out. Weights bear LLaMA's names (`layers.0.self_attn.q_proj.weight`...)."""

    def __init__(self, config: LanguageConfig, *, operations, dtype=None, device=None):
        super().__init__()
        self.config = config
        host = config.for_host()
        self.embed_tokens = operations.Embedding(config.vocabulary, config.width, dtype=dtype, device=device)
        self.layers = nn.ModuleList(
            llama.TransformerBlock(host, index, device=device, dtype=dtype, ops=operations)
            for index in range(config.layers)
        )
        self.norm = llama.RMSNorm(config.width, eps=config.norm_eps, device=device, dtype=dtype)
        self.lm_head = operations.Linear(config.width, config.vocabulary, bias=False, dtype=dtype, device=device)

    def forward(
        self,
        embeddings: torch.Tensor,
        past: KeyValues | None = None,
        *,
        keep: bool = False,
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        after_layer: Callable[[], None] = lambda: None,
    ) -> tuple[torch.Tensor, KeyValues | None]:
        """embeddings [B, T, width] behind the tokens of `past` -> (states [B, T, width], the cache with both where `keep`).

        `mask` bool [B, past + T]: False where nothing may look (padding). Padding at the right end needs none: no token sees a later one.
        `positions` int [B, T]: by default those after `past`. A `past` with room is written in place and must not be used again.
        """
        length, count = past.length if past else 0, embeddings.shape[1]
        if positions is None:
            positions = torch.arange(length, length + count, device=embeddings.device)[None]
        angles = llama.precompute_freqs_cis(
            self.config.width // self.config.heads, positions, self.config.rope_theta, device=embeddings.device
        )
        angles = tuple(part.to(embeddings.dtype) for part in angles)
        bias = _bias(length, count, mask, embeddings)
        attention = optimized_attention_for_device(embeddings.device, mask=bias is not None, small_input=True)
        states, kept = embeddings, []
        for index, layer in enumerate(self.layers):
            before = (*past.layers[index], length) if past else [] if keep else None
            states, after = layer(
                states, attention_mask=bias, freqs_cis=angles, optimized_attention=attention, past_key_value=before
            )
            if keep:
                kept.append(after[:2])
            after_layer()
        return self.norm(states), KeyValues(tuple(kept), length + count) if keep else None

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """States [..., width] -> float32 [..., vocabulary]."""
        return self.lm_head(states).float()


def _bias(length: int, count: int, mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """What attention adds to its scores, [B or 1, 1, T, past + T]; None where every token may see all."""
    if mask is None and count == 1:
        return None
    seen = torch.ones(count, length + count, dtype=torch.bool, device=like.device).tril(length)[None, None]
    if mask is not None:
        own = torch.eye(count, length + count, dtype=torch.bool, device=like.device).roll(
            length, dims=1
        )  # a row that sees nothing would be NaN
        seen = seen & mask[:, None, None, :] | own
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, torch.finfo(like.dtype).min / 4
    )


def check_interrupt() -> None:
    """Raises the host's exception where the user has pressed stop; the usual `after_layer`."""
    comfy.model_management.throw_exception_if_processing_interrupted()
