"""The encoder in which image and text read each other, layer by layer.

Source: Grounding DINO (Liu et al. 2023, arXiv 2303.05499), section 3.2, feature enhancer. Modules have Grounding
DINO's published names; the pose decoder's checkpoint has the same layers as `fusion_layers`, `text_layers` and
`layers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...mulan.conditioning.adapter import Attention
from .deformable_attention import DeformableAttention
from .layers import LAYER_NORM_EPS, sine_embedding
from .pyramid import BACKBONE_MAPS, Pyramid, cell_references


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder.

    `num_heads` and `intermediate_size` are the deformable layer's, `text_*` the text layer's, `fusion_*` the fusion
    layer's.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    text_num_heads: int
    text_intermediate_size: int
    fusion_num_heads: int
    fusion_hidden_size: int
    num_levels: int
    num_points: int

    def __post_init__(self):
        if self.num_levels < BACKBONE_MAPS:
            raise ValueError(
                f"its encoder has {self.num_levels} levels: must be at least {BACKBONE_MAPS}, one for each map of the "
                "backbone"
            )


class BiAttention(nn.Module):
    """Image reads text and text reads image; both directions share the products of `vision_proj` and `text_proj`."""

    def __init__(self, hidden_size: int, num_heads: int, inner_size: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.num_heads = num_heads
        self.vision_proj = operations.Linear(hidden_size, inner_size, **kw)
        self.text_proj = operations.Linear(hidden_size, inner_size, **kw)
        self.values_vision_proj = operations.Linear(hidden_size, inner_size, **kw)
        self.values_text_proj = operations.Linear(hidden_size, inner_size, **kw)
        self.out_vision_proj = operations.Linear(inner_size, hidden_size, **kw)
        self.out_text_proj = operations.Linear(inner_size, hidden_size, **kw)

    def forward(self, vision, vision_mask, text, text_mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what each reads of the other, [B, S, D] and [B, K, D].

        vision [B, S, D], text [B, K, D], masks bool [B, S] and [B, K] (True: real).
        """
        query, key, vision_value, text_value = (
            rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for rows in (
                self.vision_proj(vision),
                self.text_proj(text),
                self.values_vision_proj(vision),
                self.values_text_proj(text),
            )
        )
        to_vision = F.scaled_dot_product_attention(query, key, text_value, attn_mask=text_mask[:, None, None])
        to_text = F.scaled_dot_product_attention(key, query, vision_value, attn_mask=vision_mask[:, None, None])
        return (
            self.out_vision_proj(to_vision.transpose(1, 2).flatten(2)),
            self.out_text_proj(to_text.transpose(1, 2).flatten(2)),
        )


class FusionLayer(nn.Module):
    """Image and text read each other; `vision_param` and `text_param` [D] scale what is added."""

    def __init__(self, config: EncoderConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        size = config.hidden_size
        self.vision_param = nn.Parameter(torch.empty(size, **kw))
        self.text_param = nn.Parameter(torch.empty(size, **kw))
        self.layer_norm_vision = operations.LayerNorm(size, eps=LAYER_NORM_EPS, **kw)
        self.layer_norm_text = operations.LayerNorm(size, eps=LAYER_NORM_EPS, **kw)
        self.attn = BiAttention(size, config.fusion_num_heads, config.fusion_hidden_size, operations=operations, **kw)

    def forward(self, vision, vision_mask, text, text_mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vision [B, S, D] and text [B, K, D] behind the layer; masks bool [B, S] and [B, K] (True: real)."""
        vision, text = (
            self.layer_norm_vision(vision),
            self.layer_norm_text(text),
        )  # the normed ones are kept, not the inputs
        to_vision, to_text = self.attn(vision, vision_mask, text, text_mask)
        return vision + self.vision_param.to(vision) * to_vision, text + self.text_param.to(text) * to_text


class TextEnhancerLayer(nn.Module):
    """Self-attention among the text tokens."""

    def __init__(self, config: EncoderConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        size = config.hidden_size
        self.self_attn = Attention(size, config.text_num_heads, operations=operations, **kw)
        self.layer_norm_before = operations.LayerNorm(size, eps=LAYER_NORM_EPS, **kw)
        self.fc1 = operations.Linear(size, config.text_intermediate_size, **kw)
        self.fc2 = operations.Linear(config.text_intermediate_size, size, **kw)
        self.layer_norm_after = operations.LayerNorm(size, eps=LAYER_NORM_EPS, **kw)

    def forward(self, text, positions, mask) -> torch.Tensor:
        """Return text [B, K, D] behind the layer.

        text, positions [B, K, D], mask bool broadcastable to [B, heads, K, K] (True: may be seen).
        """
        queries = text + positions
        text = self.layer_norm_before(text + self.self_attn(queries, queries, text, mask))
        return self.layer_norm_after(text + self.fc2(F.relu(self.fc1(text))))


class DeformableLayer(nn.Module):
    """Deformable self-attention of the pyramid."""

    def __init__(self, config: EncoderConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        size = config.hidden_size
        self.self_attn = DeformableAttention(
            size, config.num_heads, config.num_levels, config.num_points, operations=operations, **kw
        )
        self.self_attn_layer_norm = operations.LayerNorm(size, eps=LAYER_NORM_EPS, **kw)
        self.fc1 = operations.Linear(size, config.intermediate_size, **kw)
        self.fc2 = operations.Linear(config.intermediate_size, size, **kw)
        self.final_layer_norm = operations.LayerNorm(size, eps=LAYER_NORM_EPS, **kw)

    def forward(self, vision, references, pyramid: Pyramid) -> torch.Tensor:
        """Return vision [B, S, D] behind the layer; references float32 [B, S, levels, 2]."""
        attended = self.self_attn(vision + pyramid.positions, references, vision, pyramid.mask, pyramid.shapes)
        vision = self.self_attn_layer_norm(vision + attended)
        return self.final_layer_norm(vision + self.fc2(F.relu(self.fc1(vision))))


class EncoderLayer(nn.Module):
    """Fusion, then attention among the text, then attention within the image."""

    def __init__(self, config: EncoderConfig, **kw):
        super().__init__()
        self.fusion_layer = FusionLayer(config, **kw)
        self.text_enhancer_layer = TextEnhancerLayer(config, **kw)
        self.deformable_layer = DeformableLayer(config, **kw)

    def forward(
        self, vision, text, pyramid: Pyramid, references, text_mask, text_positions
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vision [B, S, D] and text [B, K, D] behind the layer."""
        vision, text = self.fusion_layer(vision, pyramid.mask, text, text_mask)
        text = self.text_enhancer_layer(text, text_positions, text_mask[:, None, None])
        return self.deformable_layer(vision, references, pyramid), text


class FusionEncoder(nn.Module):
    """Layers of fusion, text attention and deformable attention."""

    def __init__(self, config: EncoderConfig, **kw):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config, **kw) for _ in range(config.num_layers))

    def forward(self, pyramid: Pyramid, text, text_mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vision [B, S, D] and text [B, K, D] behind all layers.

        text [B, K, D], text_mask bool [B, K] (True: valid; the valid ones see all of each other).
        """
        vision = pyramid.features
        references = cell_references(pyramid)
        indices = torch.arange(text.shape[1], device=text.device).unsqueeze(-1)
        text_positions = sine_embedding(indices, text.shape[2]).to(text.dtype)
        for layer in self.layers:
            vision, text = layer(vision, text, pyramid, references, text_mask, text_positions)
        return vision, text
