"""The encoder in which picture and text read each other, layer by layer.

Source: Grounding DINO (Liu et al. 2023), section 3.2, feature enhancer; in upstream the same under gdino's `encoder` and unipose's
`fusion_layers`, `text_layers` and `layers`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .deformable_attention import DeformableAttention
from .layers import LAYER_NORM_EPS, MLP, Attention, sine_embedding
from .pyramid import Pyramid, cell_references


@dataclass(frozen=True)
class EncoderConfig:
    """`heads` and `feed_forward` are the deformable layer's, `text_*` the text layer's, `fusion_*` the fusion layer's."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    text_heads: int
    text_feed_forward: int
    fusion_heads: int
    fusion_width: int
    levels: int
    points: int


class BiAttention(nn.Module):
    """Picture reads text and text reads picture; both directions share the products of `vision_query` and `text_key`."""

    def __init__(self, width: int, heads: int, inner: int, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.heads = heads
        self.vision_query = operations.Linear(width, inner, **kw)
        self.text_key = operations.Linear(width, inner, **kw)
        self.vision_value = operations.Linear(width, inner, **kw)
        self.text_value = operations.Linear(width, inner, **kw)
        self.vision_out = operations.Linear(inner, width, **kw)
        self.text_out = operations.Linear(inner, width, **kw)

    def forward(self, vision, vision_mask, text, text_mask):
        """vision [B, S, D], text [B, K, D], masks bool (True: real) -> what each reads of the other, of the same shapes."""
        query, key, vision_value, text_value = (
            rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for rows in (
                self.vision_query(vision),
                self.text_key(text),
                self.vision_value(vision),
                self.text_value(text),
            )
        )
        of_text = F.scaled_dot_product_attention(query, key, text_value, attn_mask=text_mask[:, None, None])
        of_vision = F.scaled_dot_product_attention(key, query, vision_value, attn_mask=vision_mask[:, None, None])
        return self.vision_out(of_text.transpose(1, 2).flatten(2)), self.text_out(of_vision.transpose(1, 2).flatten(2))


class FusionLayer(nn.Module):
    """Weights: `vision_norm`, `text_norm`, `attention`, and the scales `vision_scale`, `text_scale` [D] of what is added."""

    def __init__(self, config: EncoderConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.vision_norm = operations.LayerNorm(config.width, eps=LAYER_NORM_EPS, **kw)
        self.text_norm = operations.LayerNorm(config.width, eps=LAYER_NORM_EPS, **kw)
        self.attention = BiAttention(
            config.width, config.fusion_heads, config.fusion_width, operations=operations, **kw
        )
        self.vision_scale = nn.Parameter(torch.empty(config.width, **kw))
        self.text_scale = nn.Parameter(torch.empty(config.width, **kw))

    def forward(self, vision, vision_mask, text, text_mask):
        vision, text = self.vision_norm(vision), self.text_norm(text)  # what is kept is the normed, not the input
        to_vision, to_text = self.attention(vision, vision_mask, text, text_mask)
        return vision + self.vision_scale.to(vision) * to_vision, text + self.text_scale.to(text) * to_text


class TextLayer(nn.Module):
    """Self-attention among the text tokens. Weights: `attention`, `attention_norm`, `feed_forward`, `feed_forward_norm`."""

    def __init__(self, config: EncoderConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.attention = Attention(config.width, config.text_heads, operations=operations, **kw)
        self.attention_norm = operations.LayerNorm(config.width, eps=LAYER_NORM_EPS, **kw)
        self.feed_forward = MLP((config.width, config.text_feed_forward, config.width), operations=operations, **kw)
        self.feed_forward_norm = operations.LayerNorm(config.width, eps=LAYER_NORM_EPS, **kw)

    def forward(self, text, positions, mask):
        """text, positions [B, K, D], mask bool broadcastable to [B, heads, K, K] (True: may be seen)."""
        placed = text + positions
        text = self.attention_norm(text + self.attention(placed, placed, text, mask))
        return self.feed_forward_norm(text + self.feed_forward(text))


class DeformableLayer(nn.Module):
    """Deformable self-attention of the pyramid. Weights: `attention`, `attention_norm`, `feed_forward`, `feed_forward_norm`."""

    def __init__(self, config: EncoderConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.attention = DeformableAttention(
            config.width, config.heads, config.levels, config.points, operations=operations, **kw
        )
        self.attention_norm = operations.LayerNorm(config.width, eps=LAYER_NORM_EPS, **kw)
        self.feed_forward = MLP((config.width, config.feed_forward, config.width), operations=operations, **kw)
        self.feed_forward_norm = operations.LayerNorm(config.width, eps=LAYER_NORM_EPS, **kw)

    def forward(self, vision, references, pyramid: Pyramid):
        read = self.attention(vision + pyramid.positions, references, vision, pyramid.mask, pyramid.shapes)
        vision = self.attention_norm(vision + read)
        return self.feed_forward_norm(vision + self.feed_forward(vision))


class EncoderLayer(nn.Module):
    """`fusion`, then `text`, then `deformable`."""

    def __init__(self, config: EncoderConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(operations=operations, dtype=dtype, device=device)
        self.fusion = FusionLayer(config, **kw)
        self.text = TextLayer(config, **kw)
        self.deformable = DeformableLayer(config, **kw)


class FusedEncoder(nn.Module):
    """Weights: `layers.{i}.fusion`, `layers.{i}.text`, `layers.{i}.deformable`."""

    def __init__(self, config: EncoderConfig, *, operations, dtype=None, device=None):
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(config, operations=operations, dtype=dtype, device=device) for _ in range(config.layers)
        )

    def forward(self, pyramid: Pyramid, text, text_mask):
        """text [B, K, D], text_mask bool [B, K] (True: valid; the valid ones see all of each other) -> vision [B, S, D], text [B, K, D]."""
        vision = pyramid.features
        references = cell_references(pyramid)
        places = torch.arange(text.shape[1], device=text.device).unsqueeze(-1)
        text_positions = sine_embedding(places, text.shape[2]).to(text.dtype)
        seen = text_mask[:, None, None]
        for layer in self.layers:
            vision, text = layer.fusion(vision, pyramid.mask, text, text_mask)
            text = layer.text(text, text_positions, seen)
            vision = layer.deformable(vision, references, pyramid)
        return vision, text
