"""MuLan's adapter for SDXL: two language adapters side by side, and a pooled vector.

Source: MuLan's ``LanguageAdapterXL`` and ``TextProjection`` (mulankit 1.0.2, mulankit/models). Its ``add_embedding``, where a file has one,
replaces the UNet's own and so belongs to the MODEL (`mulan.base_model`), not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .adapter import HEADS, AdapterShape, LanguageAdapter

POOLING = "pool_caption_projection."


@dataclass(frozen=True)
class AdapterShapeXL:
    """The sizes of the two adapters, of the pooled vector, and how it comes about.

    `text_embeds` is the width of the text encoder's own pooled vector that is projected, None where the context is attended to instead.
    """

    first: AdapterShape
    second: AdapterShape
    pooled: int
    text_embeds: int | None

    @property
    def text_width(self) -> int:
        return self.first.text_width

    @property
    def width(self) -> int:
        return self.first.width + self.second.width

    @property
    def queries(self) -> int:
        return self.first.queries

    @classmethod
    def of(cls, state_dict: Mapping[str, torch.Tensor]) -> AdapterShapeXL:
        """Reads the sizes from a state dict in published names. Raises KeyError where one is missing."""
        attention = f"{POOLING}positional_embedding" in state_dict
        return cls(
            first=AdapterShape.of(state_dict, "adapter1."),
            second=AdapterShape.of(state_dict, "adapter2."),
            pooled=state_dict[f"{POOLING}{'c_proj' if attention else 'linear_2'}.weight"].shape[0],
            text_embeds=None if attention else state_dict[f"{POOLING}linear_1.weight"].shape[1],
        )


@dataclass(frozen=True)
class ProjectionShape:
    """The sizes of a `TextProjection`: PixArt's whole adapter."""

    text_width: int
    width: int

    @classmethod
    def of(cls, state_dict: Mapping[str, torch.Tensor]) -> ProjectionShape:
        width, text_width = state_dict["linear_1.weight"].shape
        return cls(text_width, width)


class TextProjection(nn.Module):
    """Two linear layers with a tanh-approximated GELU between: x [..., text_width] -> [..., width]."""

    def __init__(self, text_width, width, dtype=None, device=None, operations=nn):
        super().__init__()
        self.linear_1 = operations.Linear(text_width, width, dtype=dtype, device=device)
        self.linear_2 = operations.Linear(width, width, dtype=dtype, device=device)

    def forward(self, x):
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))


class AttentionPooling(nn.Module):
    """One query, the mean of a context's rows, attends to itself and all rows: context [B, Q, D] -> [B, pooled]."""

    def __init__(self, queries, width, pooled, heads=HEADS, dtype=None, device=None, operations=nn):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(queries + 1, width, **kw))
        self.q_proj = operations.Linear(width, width, **kw)
        self.k_proj = operations.Linear(width, width, **kw)
        self.v_proj = operations.Linear(width, width, **kw)
        self.c_proj = operations.Linear(width, pooled, **kw)

    def forward(self, context):
        rows = torch.cat((context.mean(dim=1, keepdim=True), context), dim=1) + self.positional_embedding.to(context)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.q_proj(rows[:, :1]), self.k_proj(rows), self.v_proj(rows))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.c_proj(out.transpose(1, 2).flatten(2))[:, 0]


class LanguageAdapterXL(nn.Module):
    """Text states [B, 80, text_width] -> context [B, queries, 2048]: first the 1280 channels, then the 768, unlike SDXL's own CLIPs."""

    def __init__(self, shape: AdapterShapeXL, heads: int = HEADS, dtype=None, device=None, operations=nn):
        super().__init__()
        kw = dict(dtype=dtype, device=device, operations=operations)
        self.shape = shape
        self.adapter1 = LanguageAdapter(shape.first, heads, **kw)
        self.adapter2 = LanguageAdapter(shape.second, heads, **kw)
        if shape.text_embeds is None:
            self.pool_caption_projection = AttentionPooling(shape.queries, shape.width, shape.pooled, heads, **kw)
        else:
            self.pool_caption_projection = TextProjection(shape.text_embeds, shape.pooled, **kw)

    def forward(self, states):
        return torch.cat((self.adapter1(states), self.adapter2(states)), dim=-1)

    def pool(self, context: torch.Tensor, text_embeds: torch.Tensor | None) -> torch.Tensor:
        """The pooled vector [B, pooled], from the context [B, queries, width] or from `text_embeds` [B, text_embeds]: see the shape."""
        return self.pool_caption_projection(context if self.shape.text_embeds is None else text_embeds)
