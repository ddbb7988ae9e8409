"""Small parts that the grounding and the pose decoder share: perceptron, attention, sine embeddings, the inverse of the sigmoid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-5


class MLP(nn.Module):
    """Linear layers of the given widths with a ReLU between them. Weights: `layers.{i}`."""

    def __init__(self, widths: Sequence[int], *, operations, dtype=None, device=None):
        super().__init__()
        self.layers = nn.ModuleList(
            operations.Linear(before, after, dtype=dtype, device=device)
            for before, after in zip(widths, widths[1:], strict=False)
        )

    def forward(self, x):
        """x [..., widths[0]] -> [..., widths[-1]]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Attention(nn.Module):
    """Multi-head attention. Weights: `in_proj` (rows of queries, then keys, then values, as torch.nn.MultiheadAttention packs them), `out_proj`."""

    def __init__(self, width: int, heads: int, *, operations, dtype=None, device=None):
        super().__init__()
        self.heads = heads
        self.in_proj = operations.Linear(width, 3 * width, dtype=dtype, device=device)
        self.out_proj = operations.Linear(width, width, dtype=dtype, device=device)

    def forward(self, queries, keys, values, mask=None):
        """queries [B, Q, D], keys and values [B, K, D], mask bool broadcastable to [B, heads, Q, K] (True: may be seen) -> [B, Q, D]."""
        of_queries = self.in_proj(queries)
        of_keys = of_queries if keys is queries else self.in_proj(keys)
        of_values = of_keys if values is keys else self.in_proj(values)
        q, k, v = of_queries.chunk(3, dim=-1)[0], of_keys.chunk(3, dim=-1)[1], of_values.chunk(3, dim=-1)[2]
        q, k, v = (rows.unflatten(-1, (self.heads, -1)).transpose(1, 2) for rows in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


def inverse_sigmoid(x, eps: float):
    """log(x / (1 - x)) in float32, where x and 1 - x are taken to be at least `eps` (upstream: 1e-5 in grounding, 1e-3 in pose)."""
    x = x.float().clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def _waves(angles, width: int, temperature: float):
    """angles [...] in radians -> float32 [..., width]: sine and cosine in turn, ever slower."""
    steps = torch.arange(width, dtype=torch.float32, device=angles.device)
    slowness = temperature ** (2 * torch.div(steps, 2, rounding_mode="floor") / width)
    angles = angles.unsqueeze(-1) / slowness
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def sine_embedding(coordinates, width: int, temperature: float = 10000.0):
    """coordinates [..., N] -> float32 [..., N * width]; of several coordinates the order is y, x, then the others (DETR's order).

    Float32 whatever the coordinates are, because bfloat16 cannot tell neighbouring positions apart.
    """
    waves = [_waves(coordinate * (2 * math.pi), width, temperature) for coordinate in coordinates.float().unbind(-1)]
    if len(waves) > 1:
        waves[0], waves[1] = waves[1], waves[0]
    return torch.cat(waves, dim=-1)


def picture_positions(mask, width: int, temperature: float):
    """mask bool [B, H, W] (True: picture) -> float32 [B, H * W, width]: where in the unpadded picture each cell lies, y then x."""
    ends = []
    for axis in (1, 2):
        count = mask.cumsum(axis, dtype=torch.float32)
        total = count.narrow(axis, mask.shape[axis] - 1, 1)
        ends.append(_waves(count / (total + 1e-6) * (2 * math.pi), width // 2, temperature))
    return torch.cat(ends, dim=-1).flatten(1, 2)
