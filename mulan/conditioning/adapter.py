"""The MuLan language adapter: multilingual text states in, the context of a diffusion model's cross-attention out.

Source: MuLan's ``LanguageAdapter`` (mulankit 1.0.2, mulankit/models): an MLP, then a one-layer transformer
whose decoder reads the text states with learned queries. Nothing is masked: the rows of padding take part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

HEADS = 8
FEED_FORWARD_RATIO = 4
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class AdapterShape:
    """The sizes an adapter's own tensors tell: text width, context width, number of queries, feed-forward width."""

    text_width: int
    width: int
    queries: int
    feed_forward: int

    @classmethod
    def of(cls, state_dict: dict[str, torch.Tensor], prefix: str = "") -> AdapterShape:
        """Reads the sizes from a state dict in published or in `from_published` names. Raises KeyError where one is missing."""
        _, queries, width = state_dict[f"{prefix}queries"].shape
        return cls(
            text_width=state_dict[f"{prefix}proj.0.weight"].shape[1],
            width=width,
            queries=queries,
            feed_forward=state_dict[f"{prefix}transformer.encoder.layers.0.linear1.weight"].shape[0],
        )


def from_published(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of `torch.nn.MultiheadAttention` -> the names here, where the packed projection is a Linear like any other."""
    return {name.replace("in_proj_", "in_proj."): tensor for name, tensor in state_dict.items()}


def to_published(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `from_published`: what upstream's strict loading expects."""
    return {name.replace("in_proj.", "in_proj_"): tensor for name, tensor in state_dict.items()}


class Attention(nn.Module):
    """Multi-head attention without a mask; queries, keys and values come from one packed projection."""

    def __init__(self, width, heads, dtype=None, device=None, operations=nn):
        super().__init__()
        self.heads = heads
        self.in_proj = operations.Linear(width, 3 * width, dtype=dtype, device=device)
        self.out_proj = operations.Linear(width, width, dtype=dtype, device=device)

    def forward(self, x, memory=None):
        """x [B, Q, D], memory [B, T, D] (x itself when None) -> [B, Q, D]; x may be [1, Q, D], the same for every memory."""
        q, k, v = self.in_proj(x).chunk(3, dim=-1)
        if memory is not None:
            _, k, v = self.in_proj(memory).chunk(3, dim=-1)
        q, k, v = (rows.unflatten(-1, (self.heads, -1)).transpose(1, 2) for rows in (q, k, v))
        out = F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    def __init__(self, width, heads, feed_forward, dtype=None, device=None, operations=nn):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.self_attn = Attention(width, heads, operations=operations, **kw)
        self.linear1 = operations.Linear(width, feed_forward, **kw)
        self.linear2 = operations.Linear(feed_forward, width, **kw)
        self.norm1 = operations.LayerNorm(width, eps=LAYER_NORM_EPS, **kw)
        self.norm2 = operations.LayerNorm(width, eps=LAYER_NORM_EPS, **kw)

    def forward(self, x):
        x = x + self.self_attn(self.norm1(x))
        return x + self.linear2(F.relu(self.linear1(self.norm2(x))))


class DecoderLayer(nn.Module):
    def __init__(self, width, heads, feed_forward, dtype=None, device=None, operations=nn):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.self_attn = Attention(width, heads, operations=operations, **kw)
        self.multihead_attn = Attention(width, heads, operations=operations, **kw)
        self.linear1 = operations.Linear(width, feed_forward, **kw)
        self.linear2 = operations.Linear(feed_forward, width, **kw)
        self.norm1 = operations.LayerNorm(width, eps=LAYER_NORM_EPS, **kw)
        self.norm2 = operations.LayerNorm(width, eps=LAYER_NORM_EPS, **kw)
        self.norm3 = operations.LayerNorm(width, eps=LAYER_NORM_EPS, **kw)

    def forward(self, x, memory):
        x = x + self.self_attn(self.norm1(x))
        x = x + self.multihead_attn(self.norm2(x), memory)
        return x + self.linear2(F.relu(self.linear1(self.norm3(x))))


class Stack(nn.Module):
    """The one-layer encoder or decoder with its final norm, under the names of `torch.nn.Transformer`."""

    def __init__(self, layer, width, dtype=None, device=None, operations=nn):
        super().__init__()
        self.layers = nn.ModuleList([layer])
        self.norm = operations.LayerNorm(width, eps=LAYER_NORM_EPS, dtype=dtype, device=device)

    def forward(self, x, *memory):
        for layer in self.layers:
            x = layer(x, *memory)
        return self.norm(x)


class LanguageAdapter(nn.Module):
    """Text states [B, T, text_width] -> context [B, queries, width]; the output has `queries` rows whatever T is.

    T must be what the adapter was trained with (77 rows for SD1.5 and SD2.1, padding included), because padding is read too.
    """

    def __init__(self, shape: AdapterShape, heads: int = HEADS, dtype=None, device=None, operations=nn):
        super().__init__()
        kw = dict(dtype=dtype, device=device, operations=operations)
        self.shape = shape
        self.proj = nn.Sequential(
            operations.Linear(shape.text_width, shape.width, dtype=dtype, device=device),
            nn.GELU(),
            operations.Linear(shape.width, shape.width, dtype=dtype, device=device),
        )
        self.queries = nn.Parameter(torch.zeros(1, shape.queries, shape.width, dtype=dtype, device=device))
        self.transformer = nn.ModuleDict(
            {
                "encoder": Stack(EncoderLayer(shape.width, heads, shape.feed_forward, **kw), shape.width, **kw),
                "decoder": Stack(DecoderLayer(shape.width, heads, shape.feed_forward, **kw), shape.width, **kw),
            }
        )

    def forward(self, states):
        """states [B, T, text_width] -> context [B, queries, width]."""
        memory = self.transformer["encoder"](self.proj(states))
        queries = self.queries.to(
            dtype=memory.dtype, device=memory.device
        )  # [1, Q, D]: they differ from where they have read the memory on
        return self.transformer["decoder"](queries, memory)
