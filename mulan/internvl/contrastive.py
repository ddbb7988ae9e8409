"""InternVL-C, and what InternVL-G adds to it.

The LLaMA of both is MuLan's text encoder (../conditioning/text_encoder.py) and stands apart.

Source: mulankit 1.0.2, mulankit.internvl.modeling_internvl (InternVL_C, InternVL_G, AttentionPoolingBlock) and
modeling_qllama (LlamaCrossAttention). Modules have the published names, but for those in internvl_keys.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from .intern_vit import InternViT, InternViTConfig

POOL_EPS = 1e-5


@dataclass(frozen=True)
class ContrastiveConfig:
    """Sizes of InternVL-C but for its LLaMA."""

    vision: InternViTConfig
    text_hidden_size: int  # of the LLaMA
    embedding_size: int
    pool_num_heads: int


@dataclass(frozen=True)
class ReaderConfig:
    """Sizes of what InternVL-G adds."""

    hidden_size: int  # the LLaMA's
    vision_hidden_size: int
    num_queries: int
    num_attention_heads: int
    layers: tuple[int, ...]  # indices of the LLaMA's layers behind whose self-attention images are read
    embedding_size: int
    pool_num_heads: int
    rms_norm_eps: float


def normalize(vectors: torch.Tensor) -> torch.Tensor:
    """Return float32 vectors of unit length."""
    return F.normalize(vectors.float(), dim=-1)


class PoolingAttention(nn.Module):
    """Attention of one query to all states, [N, 1, C] and [N, T, C] twice -> [N, out_size]."""

    def __init__(self, hidden_size: int, num_heads: int, out_size: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.num_heads = num_heads
        self.q, self.k, self.v = (operations.Linear(hidden_size, hidden_size, **kw) for _ in range(3))
        self.proj = operations.Linear(hidden_size, out_size, **kw)

    def forward(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        projected = self.q(query), self.k(keys), self.v(values)
        q, k, v = (rearrange(rows, "n t (h d) -> n h t d", h=self.num_heads) for rows in projected)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "n h t d -> n t (h d)"))[:, 0]


class AttentionPooling(nn.Module):
    """Pool hidden states by attention whose query is their mean, [N, T, C] -> [N, out_size]; not of unit length."""

    def __init__(self, hidden_size: int, num_heads: int, out_size: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.norm1_q, self.norm1_k, self.norm1_v = (
            operations.LayerNorm(hidden_size, eps=POOL_EPS, **kw) for _ in range(3)
        )
        self.cross_attn = PoolingAttention(hidden_size, num_heads, out_size, operations=operations, **kw)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        mean = hidden_states.mean(dim=1, keepdim=True)
        return self.cross_attn(self.norm1_q(mean), self.norm1_k(hidden_states), self.norm1_v(hidden_states))


class ContrastiveModel(nn.Module):
    """Images and the LLaMA's states of texts -> embeddings [N, embedding_size] of unit length, float32.

    `logit_scale` is a logarithm, as published.
    """

    def __init__(self, config: ContrastiveConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        size = config.vision.hidden_size
        self.config = config
        self.vision_model = InternViT(config.vision, operations=operations, **kw)
        self.clip_projector = AttentionPooling(
            size, config.pool_num_heads, config.embedding_size, operations=operations, **kw
        )
        self.text_projection = nn.Parameter(torch.empty(config.text_hidden_size, config.embedding_size, **kw))
        self.logit_scale = nn.Parameter(torch.empty((), **kw))

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tower's last hidden states [N, 1 + patches, C] of `images` [N, 3, S, S], class token first."""
        return self.vision_model.all_hidden_states(images)[0]

    def pool_images(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of mode C, from the tower's hidden states."""
        return normalize(self.clip_projector(hidden_states))

    def project_texts(self, states: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of texts, from the LLaMA's state of each one's last token [N, text_hidden_size]."""
        return normalize(states @ self.text_projection.to(states))


class CrossAttention(nn.Module):
    """Queries [N, Q, hidden_size] read the tower's states [N, T, vision_hidden_size]; both are normalized here."""

    def __init__(self, config: ReaderConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        size, vision_size = config.hidden_size, config.vision_hidden_size
        self.num_heads = config.num_attention_heads
        self.norm1 = operations.RMSNorm(size, eps=config.rms_norm_eps, **kw)  # of the queries
        self.norm2 = operations.RMSNorm(vision_size, eps=config.rms_norm_eps, **kw)  # of the tower's states
        self.q_proj = operations.Linear(size, size, bias=False, **kw)
        self.k_proj, self.v_proj = (operations.Linear(vision_size, size, bias=False, **kw) for _ in range(2))
        self.o_proj = operations.Linear(size, size, bias=False, **kw)

    def forward(self, queries: torch.Tensor, vision_states: torch.Tensor) -> torch.Tensor:
        vision_states = self.norm2(vision_states)
        projected = self.q_proj(self.norm1(queries)), self.k_proj(vision_states), self.v_proj(vision_states)
        q, k, v = (rearrange(rows, "n t (h d) -> n h t d", h=self.num_heads) for rows in projected)
        return self.o_proj(_attend(q, k, v, self.num_heads))


class QueryReader(nn.Module):
    """Mode G: learned queries go through the LLaMA, read the tower's states on the way, and are pooled."""

    def __init__(self, config: ReaderConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        size = config.hidden_size
        self.config = config
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_queries, size, **kw))
        self.layers = nn.ModuleDict(
            {str(layer): CrossAttention(config, operations=operations, **kw) for layer in config.layers}
        )
        self.clip_projector2 = AttentionPooling(
            size, config.pool_num_heads, config.embedding_size, operations=operations, **kw
        )

    def forward(
        self, vision_states: torch.Tensor, llama: Any, after_layer: Callable[[], None] = lambda: None
    ) -> torch.Tensor:
        """Return embeddings [N, embedding_size] of unit length, from the tower's hidden states [N, T,
        vision_hidden_size].

        `llama` is ComfyUI's `Llama2_`. Its blocks are walked by hand, since some have a cross attention between their
        two halves. Every query sees every other. Computes in float32, as ComfyUI does with texts.
        """
        vision_states = vision_states.float()
        x = self.query_tokens.to(vision_states).expand(len(vision_states), -1, -1)
        freqs_cis = llama.compute_freqs_cis(torch.arange(x.shape[1], device=x.device)[None], x.device)
        for index, block in enumerate(llama.layers):
            x = x + block.self_attn(block.input_layernorm(x), freqs_cis=freqs_cis, optimized_attention=_attend)[0]
            if index in self.config.layers:
                x = x + self.layers[str(index)](x, vision_states)
            x = x + block.mlp(block.post_attention_layernorm(x))
            after_layer()
        return normalize(self.clip_projector2(llama.norm(x)))


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, **_) -> torch.Tensor:
    """Stand in for ComfyUI's `optimized_attention`, [N, heads, T, D] each -> [N, T, heads * D]: without a mask, in
    float32.
    """
    return rearrange(F.scaled_dot_product_attention(q, k, v), "n h t d -> n t (h d)")


def ensemble(embeddings: torch.Tensor, query_embeddings: torch.Tensor) -> torch.Tensor:
    """Return mode G's embeddings of images: mode C's and the reader's, both of unit length, with equal weight."""
    return normalize(embeddings + query_embeddings)
