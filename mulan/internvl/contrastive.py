"""InternVL-C, and what InternVL-G adds to it; the LLaMA of both is MuLan's text encoder (../text_encoder.py) and stands apart.

Source: mulankit 1.0.2, mulankit.internvl.modeling_internvl (InternVL_C, InternVL_G) and modeling_qllama (LlamaCrossAttention).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from .intern_vit import InternViT, InternViTConfig
from .pooling import AttentionPooling


@dataclass(frozen=True)
class ContrastiveConfig:
    tower: InternViTConfig
    text_width: int  # of the LLaMA's states
    embedding: int
    pool_heads: int


@dataclass(frozen=True)
class ReaderConfig:
    width: int  # the LLaMA's
    picture_width: int  # of the tower's states
    queries: int
    heads: int
    layers: tuple[int, ...]  # of the LLaMA, behind whose self-attention pictures are read
    embedding: int
    pool_heads: int
    norm_eps: float


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors of length 1, float32."""
    return F.normalize(vectors.float(), dim=-1)


class ContrastiveModel(nn.Module):
    """Pictures and the LLaMA's rows -> embeddings [N, embedding] of unit length, float32. `logit_scale` is a logarithm, as published."""

    def __init__(self, config: ContrastiveConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.config = config
        self.tower = InternViT(config.tower, operations=operations, **kw)
        self.pool = AttentionPooling(
            config.tower.width, config.pool_heads, config.embedding, operations=operations, **kw
        )
        self.text_projection = nn.Parameter(torch.empty(config.text_width, config.embedding, **kw))
        self.logit_scale = nn.Parameter(torch.empty((), **kw))

    def states(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures [N, 3, S, S] -> the tower's last states [N, 1 + patches, width], the class token's first."""
        return self.tower.all_states(pictures)[0]

    def embed_states(self, states: torch.Tensor) -> torch.Tensor:
        """The tower's states -> the embeddings of mode C."""
        return unit(self.pool(states))

    def embed_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The LLaMA's row of each text [N, text width] (`InternVLEncoder.last_row`) -> embeddings."""
        return unit(rows @ self.text_projection.to(rows))


class CrossAttention(nn.Module):
    """Queries [N, Q, width] read the tower's states [N, T, picture width]; both are normed here."""

    def __init__(self, config: ReaderConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.heads = config.heads
        self.norm = operations.RMSNorm(config.width, eps=config.norm_eps, **kw)
        self.picture_norm = operations.RMSNorm(config.picture_width, eps=config.norm_eps, **kw)
        self.q = operations.Linear(config.width, config.width, bias=False, **kw)
        self.k, self.v = (operations.Linear(config.picture_width, config.width, bias=False, **kw) for _ in range(2))
        self.out = operations.Linear(config.width, config.width, bias=False, **kw)

    def forward(self, queries, states):
        states = self.picture_norm(states)
        rows = self.q(self.norm(queries)), self.k(states), self.v(states)
        return self.out(_attend(*(rearrange(each, "n t (h d) -> n h t d", h=self.heads) for each in rows), self.heads))


class QueryReader(nn.Module):
    """Mode G: learned queries go through the LLaMA, read the tower's states on the way, and are pooled."""

    def __init__(self, config: ReaderConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.config = config
        self.queries = nn.Parameter(torch.empty(1, config.queries, config.width, **kw))
        self.layers = nn.ModuleDict(
            {str(layer): CrossAttention(config, operations=operations, **kw) for layer in config.layers}
        )
        self.pool = AttentionPooling(config.width, config.pool_heads, config.embedding, operations=operations, **kw)

    def forward(self, states: torch.Tensor, llama, after_layer: Callable[[], None] = lambda: None) -> torch.Tensor:
        """The tower's states -> [N, embedding] of unit length. `llama` is the host's, whose blocks are walked by hand: a cross attention stands
        between the two halves of some. No query is hidden from another. Computed in float32, as the host does texts."""
        states = states.float()
        x = self.queries.to(states).expand(len(states), -1, -1)
        turns = llama.compute_freqs_cis(torch.arange(x.shape[1], device=x.device)[None], x.device)
        for index, block in enumerate(llama.layers):
            x = x + block.self_attn(block.input_layernorm(x), freqs_cis=turns, optimized_attention=_attend)[0]
            if index in self.config.layers:
                x = x + self.layers[str(index)](x, states)
            x = x + block.mlp(block.post_attention_layernorm(x))
            after_layer()
        return unit(self.pool(llama.norm(x)))


def _attend(q, k, v, heads: int, **_) -> torch.Tensor:
    """What the host's blocks call: [N, heads, T, D] each -> [N, T, heads D]."""
    return rearrange(F.scaled_dot_product_attention(q, k, v), "n h t d -> n t (h d)")


def ensemble(embeddings: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """Mode G's embeddings of pictures: those of mode C and the reader's, both of unit length, with equal say."""
    return unit(embeddings + read)
