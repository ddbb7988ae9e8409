"""Many states -> one embedding, by attention: the query is the states' mean (upstream's AttentionPoolingBlock)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

EPS = 1e-5


class AttentionPooling(nn.Module):
    """[N, T, width] -> [N, out]; not of unit length."""

    def __init__(self, width: int, heads: int, out: int, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.heads = heads
        self.norm_q, self.norm_k, self.norm_v = (operations.LayerNorm(width, eps=EPS, **kw) for _ in range(3))
        self.q, self.k, self.v = (operations.Linear(width, width, **kw) for _ in range(3))
        self.out = operations.Linear(width, out, **kw)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        q = self.q(self.norm_q(states.mean(dim=1, keepdim=True)))
        rows = q, self.k(self.norm_k(states)), self.v(self.norm_v(states))
        heads = (rearrange(each, "n t (h d) -> n h t d", h=self.heads) for each in rows)
        return self.out(rearrange(F.scaled_dot_product_attention(*heads), "n h t d -> n t (h d)"))[:, 0]
