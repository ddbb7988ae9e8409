"""From the vision tower's width to the language model's.

Source: VisionLLMv2/visionllmv2/model/modeling_visionllmv2.py (`vl_bridge`; pixel shuffle as InternVL 1.5 does it).
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class BridgeConfig:
    """`linear`: one layer; `mlp2x_gelu`: two; `internvl_mlp`: two behind a norm (`width` then counts four shuffled pixels)."""

    width: int
    out_width: int
    layers: int
    normed: bool


def pixel_shuffle(x):
    """[N, H, W, C] -> [N, H/2, W/2, 4C]: a square of four neighbours becomes one."""
    return rearrange(x, "n (h i) (w j) c -> n h w (i j c)", i=2, j=2)


class Bridge(nn.Module):
    def __init__(self, config: BridgeConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.config = config
        self.norm = operations.LayerNorm(config.width, **kw) if config.normed else None
        self.layers = nn.ModuleList(
            operations.Linear(config.out_width if index else config.width, config.out_width, **kw)
            for index in range(config.layers)
        )

    def forward(self, x):
        """[..., width] -> [..., out_width]."""
        if self.norm is not None:
            x = self.norm(x)
        for index, layer in enumerate(self.layers):
            x = layer(F.gelu(x) if index else x)
        return x
