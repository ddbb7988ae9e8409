"""MuLan's adapters for SDXL (two language adapters side by side, and a pooled vector) and for PixArt (a projection).

Source: MuLan's ``LanguageAdapterXL`` and ``TextProjection`` (mulankit 1.0.2, mulankit/models). Its ``add_embedding``,
where a file has one, replaces the UNet's own and so belongs to the MODEL (`mulan.conditioning.base_model`), not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .adapter import NUM_HEADS, AdapterShape, LanguageAdapter, tensor_shape

POOLING = "pool_caption_projection."


@dataclass(frozen=True)
class AdapterShapeXL:
    """The sizes of the two adapters and of the pooled vector.

    `text_embeds_dim` is the size of the text encoder's own pooled vector, which is projected to `pooled_dim`.
    It is None where attention pools the context instead.
    """

    first: AdapterShape
    second: AdapterShape
    pooled_dim: int
    text_embeds_dim: int | None

    @property
    def text_hidden_size(self) -> int:
        return self.first.text_hidden_size

    @property
    def context_dim(self) -> int:
        return self.first.context_dim + self.second.context_dim

    @property
    def num_queries(self) -> int:
        return self.first.num_queries

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> AdapterShapeXL:
        """Read the sizes from a state dict in published names. Raises KeyError where a tensor is missing."""
        attention = f"{POOLING}positional_embedding" in state_dict
        return cls(
            first=AdapterShape.from_state_dict(state_dict, "adapter1."),
            second=AdapterShape.from_state_dict(state_dict, "adapter2."),
            pooled_dim=tensor_shape(state_dict, f"{POOLING}{'c_proj' if attention else 'linear_2'}.weight", 2)[0],
            text_embeds_dim=None if attention else tensor_shape(state_dict, f"{POOLING}linear_1.weight", 2)[1],
        )


@dataclass(frozen=True)
class ProjectionShape:
    """The sizes of a `TextProjection`: PixArt's whole adapter."""

    text_hidden_size: int
    context_dim: int

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> ProjectionShape:
        """Read the sizes from a state dict in published names. Raises KeyError where a tensor is missing."""
        context_dim, text_hidden_size = tensor_shape(state_dict, "linear_1.weight", 2)
        return cls(text_hidden_size, context_dim)


AnyAdapterShape = AdapterShape | AdapterShapeXL | ProjectionShape


class TextProjection(nn.Module):
    """Two linear layers with a tanh-approximated GELU between: x [..., in_dim] -> [..., out_dim]."""

    def __init__(self, in_dim, out_dim, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        self.linear_1 = operations.Linear(in_dim, out_dim, dtype=dtype, device=device)
        self.linear_2 = operations.Linear(out_dim, out_dim, dtype=dtype, device=device)

    def forward(self, x):
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))


class AttentionPooling(nn.Module):
    """One query, the mean of a context's rows, attends to itself and all rows: context [B, Q, D] -> [B, pooled_dim]."""

    def __init__(
        self, num_queries, context_dim, pooled_dim, num_heads=NUM_HEADS, dtype=None, device=None, operations: Any = nn
    ):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.zeros(num_queries + 1, context_dim, **kw))
        self.q_proj = operations.Linear(context_dim, context_dim, **kw)
        self.k_proj = operations.Linear(context_dim, context_dim, **kw)
        self.v_proj = operations.Linear(context_dim, context_dim, **kw)
        self.c_proj = operations.Linear(context_dim, pooled_dim, **kw)

    def forward(self, context):
        rows = torch.cat((context.mean(dim=1, keepdim=True), context), dim=1) + self.positional_embedding.to(context)
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.q_proj(rows[:, :1]), self.k_proj(rows), self.v_proj(rows))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.c_proj(out.transpose(1, 2).flatten(2))[:, 0]


class LanguageAdapterXL(nn.Module):
    """Text states [B, 80, text_hidden_size] -> context [B, num_queries, 2048].

    The 1280 channels come first, then the 768, unlike those of SDXL's own CLIPs.
    """

    def __init__(
        self, shape: AdapterShapeXL, num_heads: int = NUM_HEADS, dtype=None, device=None, operations: Any = nn
    ):
        super().__init__()
        kw = dict(dtype=dtype, device=device, operations=operations)
        self.shape = shape
        self.adapter1 = LanguageAdapter(shape.first, num_heads, **kw)
        self.adapter2 = LanguageAdapter(shape.second, num_heads, **kw)
        if shape.text_embeds_dim is None:
            self.pool_caption_projection = AttentionPooling(
                shape.num_queries, shape.context_dim, shape.pooled_dim, num_heads, **kw
            )
        else:
            self.pool_caption_projection = TextProjection(shape.text_embeds_dim, shape.pooled_dim, **kw)

    def forward(self, states):
        return torch.cat((self.adapter1(states), self.adapter2(states)), dim=-1)

    def pool(self, context: torch.Tensor, text_embeds: torch.Tensor | None) -> torch.Tensor:
        """Return the pooled vector [B, pooled_dim].

        It comes from the context [B, num_queries, context_dim], or from `text_embeds` [B, text_embeds_dim]: see the
        shape.
        """
        return self.pool_caption_projection(context if self.shape.text_embeds_dim is None else text_embeds)
