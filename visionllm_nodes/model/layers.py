"""Small parts that the grounding and the pose decoder share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-5


class MLP(nn.Module):
    """Linear layers between the given sizes, with a ReLU between them."""

    def __init__(self, sizes: Sequence[int], *, operations: Any, dtype=None, device=None):
        super().__init__()
        self.layers = nn.ModuleList(
            operations.Linear(before, after, dtype=dtype, device=device) for before, after in pairwise(sizes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., sizes[0]] to [..., sizes[-1]]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def inverse_sigmoid(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return log(x / (1 - x)) in float32.

    x and 1 - x are clamped to at least `eps` (upstream: 1e-5 in grounding, 1e-3 in pose).
    """
    x = x.float().clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def _sine_waves(angles: torch.Tensor, size: int, temperature: float) -> torch.Tensor:
    """Return sine and cosine in turn, of ever lower frequency: angles [...] in radians -> float32 [..., size]."""
    steps = torch.arange(size, dtype=torch.float32, device=angles.device)
    periods = temperature ** (2 * torch.div(steps, 2, rounding_mode="floor") / size)
    angles = angles.unsqueeze(-1) / periods
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def sine_embedding(coordinates: torch.Tensor, size: int, temperature: float = 10000.0) -> torch.Tensor:
    """Embed coordinates [..., N] in float32 [..., N * size]; of several the order is y, x, then the others (DETR's).

    Float32 whatever the coordinates are, because bfloat16 cannot tell neighboring positions apart.
    """
    waves = [
        _sine_waves(coordinate * (2 * math.pi), size, temperature) for coordinate in coordinates.float().unbind(-1)
    ]
    if len(waves) > 1:
        waves[0], waves[1] = waves[1], waves[0]
    return torch.cat(waves, dim=-1)


def image_positions(mask: torch.Tensor, size: int, temperature: float) -> torch.Tensor:
    """Return where in the unpadded image each cell lies, y then x: float32 [B, H * W, size].

    `mask`: bool [B, H, W] (True: image).
    """
    axes = []
    for axis in (1, 2):
        count = mask.cumsum(axis, dtype=torch.float32)
        total = count.narrow(axis, mask.shape[axis] - 1, 1)
        axes.append(_sine_waves(count / (total + 1e-6) * (2 * math.pi), size // 2, temperature))
    return torch.cat(axes, dim=-1).flatten(1, 2)
