"""One layer of the decoders: queries see each other, then the text, then the image.

Source: Grounding DINO (Liu et al. 2023, arXiv 2303.05499), section 3.4; UniPose (Yang et al. 2023, arXiv 2310.08530)
has the same layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...mulan.conditioning.adapter import Attention
from .deformable_attention import DeformableAttention
from .layers import LAYER_NORM_EPS
from .pyramid import Pyramid


class DecoderLayer(nn.Module):
    """Modules have Grounding DINO's published names: `encoder_attn_text` reads the text, `encoder_attn` the image."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        num_levels: int,
        num_points: int,
        *,
        operations: Any,
        dtype=None,
        device=None,
    ):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        own = dict(operations=operations, **kw)
        self.self_attn = Attention(hidden_size, num_heads, **own)
        self.self_attn_layer_norm = operations.LayerNorm(hidden_size, eps=LAYER_NORM_EPS, **kw)
        self.encoder_attn_text = Attention(hidden_size, num_heads, **own)
        self.encoder_attn_text_layer_norm = operations.LayerNorm(hidden_size, eps=LAYER_NORM_EPS, **kw)
        self.encoder_attn = DeformableAttention(hidden_size, num_heads, num_levels, num_points, **own)
        self.encoder_attn_layer_norm = operations.LayerNorm(hidden_size, eps=LAYER_NORM_EPS, **kw)
        self.fc1 = operations.Linear(hidden_size, intermediate_size, **kw)
        self.fc2 = operations.Linear(intermediate_size, hidden_size, **kw)
        self.final_layer_norm = operations.LayerNorm(hidden_size, eps=LAYER_NORM_EPS, **kw)

    def forward(
        self, hidden_states, positions, references, vision, pyramid: Pyramid, text, text_mask, self_mask=None
    ) -> torch.Tensor:
        """Return the queries' hidden states [B, Q, D] behind this layer, not yet normed for output.

        hidden_states, positions [B, Q, D], references float32 [B, Q, levels, 4], vision [B, S, D], text [B, K, D],
        text_mask bool [B, K], self_mask bool broadcastable to [B, heads, Q, Q] (True: may be seen; None: all).
        """
        queries = hidden_states + positions
        attended = self.self_attn(queries, queries, hidden_states, self_mask)
        hidden_states = self.self_attn_layer_norm(hidden_states + attended)
        attended = self.encoder_attn_text(hidden_states + positions, text, text, text_mask[:, None, None])
        hidden_states = self.encoder_attn_text_layer_norm(hidden_states + attended)
        attended = self.encoder_attn(hidden_states + positions, references, vision, pyramid.mask, pyramid.shapes)
        hidden_states = self.encoder_attn_layer_norm(hidden_states + attended)
        return self.final_layer_norm(hidden_states + self.fc2(F.relu(self.fc1(hidden_states))))
