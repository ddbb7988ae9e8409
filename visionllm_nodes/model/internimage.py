"""InternImage, the large backbone of the grounding and pose decoders (Wang et al. 2022), with its deformable convolution DCNv3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from ...mulan.internvl.feed_forward import FeedForward

EPS = 1e-6
KERNEL = 3


@dataclass(frozen=True)
class InternImageConfig:
    """`width` channels of the first level, doubled per level; `post_norms`: the blocks of the third level with another norm behind them."""

    width: int
    depths: tuple[int, ...]
    groups: tuple[int, ...]
    hidden: int  # of the first level's perceptron, doubled per level
    post_norms: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.width << level for level in range(len(self.depths)))


def deformable_convolution(value: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The core of DCNv3, in float32: each position's weighted sum of nine bilinear samples, zeros outside.

    value [B, H, W, G*D]; offsets [B, H, W, G*18]: pixels, (x, y) of the nine points of each group, left column first, top to bottom;
    weights [B, H, W, G*9] before the softmax -> [B, H, W, G*D] of value's dtype.
    """
    height, width = value.shape[1:3]
    points = KERNEL * KERNEL
    groups = weights.shape[-1] // points
    offsets = rearrange(offsets.float(), "b h w (g p xy) -> p (b g) h w xy", p=points, xy=2)
    weights = rearrange(
        rearrange(weights.float(), "b h w (g p) -> b h w g p", p=points).softmax(-1), "b h w g p -> p (b g) 1 h w"
    )
    source = rearrange(value.float(), "b h w (g d) -> (b g) d h w", g=groups)
    centre = torch.stack(
        torch.meshgrid(
            torch.arange(width, device=value.device) + 0.5,
            torch.arange(height, device=value.device) + 0.5,
            indexing="xy",
        ),
        dim=-1,
    )
    size = torch.tensor([width, height], dtype=torch.float32, device=value.device)
    total = 0
    for point in range(points):  # one at a time: nine copies of the map are not held at once
        step = torch.tensor([point // KERNEL - 1, point % KERNEL - 1], dtype=torch.float32, device=value.device)
        grid = (centre + step + offsets[point]) / size * 2 - 1
        total = total + weights[point] * F.grid_sample(source, grid, align_corners=False)
    return rearrange(total, "(b g) d h w -> b h w (g d)", g=groups).to(value)


class DeformableConvolution(nn.Module):
    """DCNv3: offsets and weights come from a depthwise convolution; a gate per group lets the undeformed value through."""

    def __init__(self, width: int, groups: int, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        points = groups * KERNEL * KERNEL
        self.groups = groups
        self.value = operations.Linear(width, width, **kw)
        self.depthwise = operations.Conv2d(width, width, 5, padding=2, groups=width, **kw)
        self.norm = operations.LayerNorm(width, eps=EPS, **kw)
        self.offsets = operations.Linear(width, 2 * points, **kw)
        self.weights = operations.Linear(width, points, **kw)
        self.gate = operations.Linear(width, groups, **kw)
        self.out = operations.Linear(width, width, **kw)

    def forward(self, x):
        """[B, H, W, C] -> the same."""
        value = self.value(x)
        guide = F.gelu(self.norm(self.depthwise(x.movedim(-1, 1)).movedim(1, -1)))
        sampled = deformable_convolution(value, self.offsets(guide), self.weights(guide))
        gate = self.gate(guide).sigmoid().repeat_interleave(x.shape[-1] // self.groups, dim=-1)
        return self.out(sampled * (1 - gate) + value * gate)


class InternImageBlock(nn.Module):
    def __init__(self, width: int, groups: int, hidden: int, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.norm1 = operations.LayerNorm(width, eps=EPS, **kw)
        self.convolution = DeformableConvolution(width, groups, operations=operations, **kw)
        self.out_norm1 = operations.LayerNorm(width, eps=EPS, **kw)
        self.norm2 = operations.LayerNorm(width, eps=EPS, **kw)
        self.feed_forward = FeedForward(width, hidden, operations=operations, **kw)
        self.out_norm2 = operations.LayerNorm(width, eps=EPS, **kw)

    def forward(self, x):
        x = x + self.out_norm1(self.convolution(self.norm1(x)))
        return x + self.out_norm2(self.feed_forward(self.norm2(x)))


class Halve(nn.Module):
    """Stride-2 convolution and norm: [B, H, W, C] -> [B, H/2, W/2, C']."""

    def __init__(self, width: int, out_width: int, *, bias: bool, operations, dtype=None, device=None):
        super().__init__()
        self.conv = operations.Conv2d(width, out_width, 3, stride=2, padding=1, bias=bias, dtype=dtype, device=device)
        self.norm = operations.LayerNorm(out_width, eps=EPS, dtype=dtype, device=device)

    def forward(self, x):
        return self.norm(self.conv(x.movedim(-1, 1)).movedim(1, -1))


class Level(nn.Module):
    def __init__(
        self,
        width: int,
        groups: int,
        hidden: int,
        depth: int,
        post_norms: tuple[int, ...],
        *,
        operations,
        dtype=None,
        device=None,
    ):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.blocks = nn.ModuleList(
            InternImageBlock(width, groups, hidden, operations=operations, **kw) for _ in range(depth)
        )
        self.post_norms = nn.ModuleDict(
            {str(block): operations.LayerNorm(width, eps=EPS, **kw) for block in post_norms}
        )
        self.norm = operations.LayerNorm(width, eps=EPS, **kw)

    def forward(self, x):
        for index, block in enumerate(self.blocks):
            x = block(x)
            if str(index) in self.post_norms:
                x = self.post_norms[str(index)](x)
        return self.norm(x)


class InternImage(nn.Module):
    def __init__(self, config: InternImageConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(operations=operations, dtype=dtype, device=device)
        self.config = config
        self.widths = config.widths
        self.stem = nn.ModuleList(
            [Halve(3, config.width // 2, bias=True, **kw), Halve(config.width // 2, config.width, bias=True, **kw)]
        )
        self.levels = nn.ModuleList(
            Level(width, groups, config.hidden << level, depth, config.post_norms if level == 2 else (), **kw)
            for level, (width, groups, depth) in enumerate(zip(self.widths, config.groups, config.depths))
        )
        self.halves = nn.ModuleList(Halve(width, 2 * width, bias=False, **kw) for width in self.widths[:-1])

    def forward(self, images):
        """images [B, 3, H, W], H and W multiples of 32 -> four normed maps [B, C_i, H/4.., W/4..]."""
        x = self.stem[1](F.gelu(self.stem[0](images.movedim(1, -1))))
        maps = []
        for index, level in enumerate(self.levels):
            x = level(self.halves[index - 1](x) if index else x)
            maps.append(x.movedim(-1, 1))
        return maps
