"""The two-layer GELU perceptron that every vision block here ends with."""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F


class FeedForward(nn.Module):
    """[..., width] -> [..., width], `hidden` wide in between; exact (erf) GELU."""

    def __init__(self, width: int, hidden: int, *, operations, dtype=None, device=None):
        super().__init__()
        self.up = operations.Linear(width, hidden, dtype=dtype, device=device)
        self.down = operations.Linear(hidden, width, dtype=dtype, device=device)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))
