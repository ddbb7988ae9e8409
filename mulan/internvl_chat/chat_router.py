"""The router of InternVL 3.5 Flash: which tiles of a prompt the language model reads in a quarter of the tokens (Wang
et al. 2025, arXiv 2508.18265, "visual resolution router").

Modules have OpenGVLab's names. Two oddities of their code, which the weights need: the second attention of the pooling
runs three times, while the third and the fourth are in the checkpoint and never used; and a tile is compressed only
where its score is above a quantile of all the prompt's, so a single tile never is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

NUM_HEADS = 16  # of the pooling, at every size
ROUNDS = 3  # of its second attention
UNREAD = ("attn3.", "norm3.", "attn4.", "norm4.")


@dataclass(frozen=True)
class RouterConfig:
    """A tile is compressed where its score is above a quantile of all scores, and at least the absolute threshold."""

    relative_threshold: float
    absolute_threshold: float

    def compressed(self, scores: torch.Tensor) -> list[bool]:
        """Return of each tile of one prompt, from its score [N], whether it is compressed."""
        scores = scores.float()
        least = torch.quantile(scores, self.relative_threshold)
        return ((scores > least) & (scores >= self.absolute_threshold)).tolist()


class CoarseProjector(nn.Sequential):
    """[..., hidden states of merged patches] -> [..., hidden size of the language model]; wider than that of `mlp1`."""

    def __init__(self, vision_size: int, language_size: int, *, operations: Any, dtype=None, device=None):
        kw = dict(dtype=dtype, device=device)
        super().__init__(
            operations.LayerNorm(vision_size, **kw),
            operations.Linear(vision_size, 2 * language_size, **kw),
            nn.GELU(),
            nn.Identity(),  # published: dropout
            operations.Linear(2 * language_size, 2 * language_size, **kw),
            nn.GELU(),
            nn.Identity(),
            operations.Linear(2 * language_size, language_size, **kw),
        )


class QueryAttention(nn.Module):
    """One query attends to the patches of its tile."""

    def __init__(self, size: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        self.in_proj = operations.Linear(size, 3 * size, dtype=dtype, device=device)
        self.out_proj = operations.Linear(size, size, dtype=dtype, device=device)

    def forward(self, query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Return [N, 1, size] from `query` of that shape and `patches` [N, T, size]."""
        q, _, _ = self.in_proj(query).chunk(3, dim=-1)
        _, k, v = self.in_proj(patches).chunk(3, dim=-1)
        q, k, v = (rearrange(rows, "n t (h d) -> n h t d", h=NUM_HEADS) for rows in (q, k, v))
        return self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "n h t d -> n t (h d)"))


class TilePooling(nn.Module):
    """The patches of tiles [N, T, size] -> one vector each, [N, size]."""

    def __init__(self, size: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.query_token = nn.Parameter(torch.empty(1, size, **kw))
        self.attn1 = QueryAttention(size, operations=operations, **kw)
        self.norm1 = operations.LayerNorm(size, **kw)
        self.attn2 = QueryAttention(size, operations=operations, **kw)
        self.norm2 = operations.LayerNorm(size, **kw)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        pooled = self.query_token.to(patches).expand(len(patches), 1, -1)
        pooled = self.norm1(self.attn1(pooled, patches))
        for _ in range(ROUNDS):
            pooled = self.norm2(self.attn2(pooled, patches))
        return pooled.squeeze(1)


class Gating(nn.Module):
    """Pooled tiles [N, size] -> scores [N]: how likely a quarter of the tokens is enough."""

    def __init__(self, size: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)

        def block() -> nn.Sequential:
            return nn.Sequential(
                operations.Linear(size, 4 * size, **kw),
                nn.GELU(),
                nn.Identity(),  # published: dropout
                operations.Linear(4 * size, size, **kw),
                nn.Identity(),
                operations.LayerNorm(size, **kw),
            )

        self.block1, self.block2, self.block3, self.block4 = (block() for _ in range(4))
        self.gate = nn.Sequential(operations.LayerNorm(size, **kw), operations.Linear(size, 2, **kw))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        for block in (self.block1, self.block2, self.block3, self.block4):
            pooled = pooled + block(pooled)
        return self.gate(pooled).softmax(dim=-1)[:, 0]
