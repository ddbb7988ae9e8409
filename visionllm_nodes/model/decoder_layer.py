"""One layer of the decoders: queries see each other, then the text, then the picture.

Source: Grounding DINO (Liu et al. 2023), section 3.4; UniPose (Yang et al. 2023) has the same layer.
"""

from __future__ import annotations

from torch import nn

from .deformable_attention import DeformableAttention
from .layers import LAYER_NORM_EPS, MLP, Attention
from .pyramid import Pyramid


class DecoderLayer(nn.Module):
    """Weights: `self_attention`, `self_norm`, `text_attention`, `text_norm`, `picture_attention`, `picture_norm`, `feed_forward`,
    `feed_forward_norm`."""

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        levels: int,
        points: int,
        *,
        operations,
        dtype=None,
        device=None,
    ):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.self_attention = Attention(width, heads, operations=operations, **kw)
        self.self_norm = operations.LayerNorm(width, eps=LAYER_NORM_EPS, **kw)
        self.text_attention = Attention(width, heads, operations=operations, **kw)
        self.text_norm = operations.LayerNorm(width, eps=LAYER_NORM_EPS, **kw)
        self.picture_attention = DeformableAttention(width, heads, levels, points, operations=operations, **kw)
        self.picture_norm = operations.LayerNorm(width, eps=LAYER_NORM_EPS, **kw)
        self.feed_forward = MLP((width, feed_forward, width), operations=operations, **kw)
        self.feed_forward_norm = operations.LayerNorm(width, eps=LAYER_NORM_EPS, **kw)

    def forward(self, states, positions, references, vision, pyramid: Pyramid, text, text_mask, self_mask=None):
        """states, positions [B, Q, D], references float32 [B, Q, levels, 4], vision [B, S, D], text [B, K, D], text_mask bool [B, K],
        self_mask bool broadcastable to [B, heads, Q, Q] (True: may be seen; None: all) -> [B, Q, D], not normed for output."""
        placed = states + positions
        states = self.self_norm(states + self.self_attention(placed, placed, states, self_mask))
        states = self.text_norm(states + self.text_attention(states + positions, text, text, text_mask[:, None, None]))
        read = self.picture_attention(states + positions, references, vision, pyramid.mask, pyramid.shapes)
        states = self.picture_norm(states + read)
        return self.feed_forward_norm(states + self.feed_forward(states))
