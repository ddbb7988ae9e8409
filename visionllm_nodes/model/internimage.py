"""InternImage, the large backbone of the grounding and pose decoders (Wang et al. 2022, arXiv 2211.05778).

Modules have the published names; that is why norms stand in an nn.Sequential.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from ...mulan.internvl.intern_vit import FeedForward

EPS = 1e-6
KERNEL_SIZE = 3


@dataclass(frozen=True)
class InternImageConfig:
    """Sizes of InternImage.

    `embed_dim` channels of the first level, doubled per level; `post_norm_blocks`: the third level's blocks with
    another norm behind them.
    """

    embed_dim: int
    depths: tuple[int, ...]
    groups: tuple[int, ...]
    intermediate_size: int  # of the first level's perceptrons, doubled per level
    post_norm_blocks: tuple[int, ...]

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level's output."""
        return tuple(self.embed_dim << level for level in range(len(self.depths)))


def deformable_convolution(value: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute the core of DCNv3 in float32: each position's weighted sum of nine bilinear samples, zeros outside.

    value [B, H, W, G*D]; offsets [B, H, W, G*18]: pixels, (x, y) of the nine points of each group, left column first,
    top to bottom; weights [B, H, W, G*9] before the softmax -> [B, H, W, G*D] of value's dtype.
    """
    height, width = value.shape[1:3]
    points = KERNEL_SIZE * KERNEL_SIZE
    groups = weights.shape[-1] // points
    offsets = rearrange(offsets.float(), "b h w (g p xy) -> p (b g) h w xy", p=points, xy=2)
    weights = rearrange(
        rearrange(weights.float(), "b h w (g p) -> b h w g p", p=points).softmax(-1), "b h w g p -> p (b g) 1 h w"
    )
    source = rearrange(value.float(), "b h w (g d) -> (b g) d h w", g=groups)
    centers = torch.stack(
        torch.meshgrid(
            torch.arange(width, device=value.device) + 0.5,
            torch.arange(height, device=value.device) + 0.5,
            indexing="xy",
        ),
        dim=-1,
    )
    size = centers[-1, -1] + 0.5  # width and height
    order = torch.arange(points, device=value.device)
    steps = torch.stack((order // KERNEL_SIZE - 1, order % KERNEL_SIZE - 1), dim=-1)
    total: Any = 0
    for point in range(points):  # one at a time: nine copies of the map are not held at once
        grid = (centers + steps[point] + offsets[point]) / size * 2 - 1
        total = total + weights[point] * F.grid_sample(source, grid, align_corners=False)
    return rearrange(total, "(b g) d h w -> b h w (g d)", g=groups).to(value)


class ChannelsLast(nn.Module):
    """[B, C, H, W] -> [B, H, W, C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.movedim(1, -1)


class DCNv3(nn.Module):
    """Deformable convolution.

    Offsets and weights come from a depthwise convolution; a gate per group lets the undeformed value through.
    """

    def __init__(self, channels: int, groups: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        points = groups * KERNEL_SIZE * KERNEL_SIZE
        self.groups = groups
        self.dw_conv = nn.Sequential(
            operations.Conv2d(channels, channels, 5, padding=2, groups=channels, **kw),
            nn.Sequential(ChannelsLast(), operations.LayerNorm(channels, eps=EPS, **kw)),
            nn.GELU(),
        )
        self.offset = operations.Linear(channels, 2 * points, **kw)
        self.mask = operations.Linear(channels, points, **kw)
        self.input_proj = operations.Linear(channels, channels, **kw)
        self.output_proj = operations.Linear(channels, channels, **kw)
        self.center_feature_scale_proj = operations.Linear(channels, groups, **kw)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, W, C] -> the same."""
        value = self.input_proj(x)
        guide = self.dw_conv(x.movedim(-1, 1))
        sampled = deformable_convolution(value, self.offset(guide), self.mask(guide))
        gate = self.center_feature_scale_proj(guide).sigmoid().repeat_interleave(x.shape[-1] // self.groups, dim=-1)
        return self.output_proj(sampled * (1 - gate) + value * gate)


class InternImageBlock(nn.Module):
    """Deformable convolution and a perceptron, each between two norms and added."""

    def __init__(self, channels: int, groups: int, intermediate_size: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.norm1 = nn.Sequential(operations.LayerNorm(channels, eps=EPS, **kw))
        self.dcn = DCNv3(channels, groups, operations=operations, **kw)
        self.res_post_norm1 = nn.Sequential(operations.LayerNorm(channels, eps=EPS, **kw))
        self.norm2 = nn.Sequential(operations.LayerNorm(channels, eps=EPS, **kw))
        self.mlp = FeedForward(channels, intermediate_size, operations=operations, **kw)
        self.res_post_norm2 = nn.Sequential(operations.LayerNorm(channels, eps=EPS, **kw))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, W, C] -> the same."""
        x = x + self.res_post_norm1(self.dcn(self.norm1(x)))
        return x + self.res_post_norm2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Two stride-2 convolutions with norms: images [B, 3, H, W] -> [B, H/4, W/4, C]."""

    def __init__(self, channels: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.conv1 = operations.Conv2d(3, channels // 2, 3, stride=2, padding=1, **kw)
        self.norm1 = nn.Sequential(ChannelsLast(), operations.LayerNorm(channels // 2, eps=EPS, **kw))
        self.conv2 = operations.Conv2d(channels // 2, channels, 3, stride=2, padding=1, **kw)
        self.norm2 = nn.Sequential(ChannelsLast(), operations.LayerNorm(channels, eps=EPS, **kw))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.norm1(self.conv1(images)))
        return self.norm2(self.conv2(x.movedim(-1, 1)))


class Downsample(nn.Module):
    """Stride-2 convolution and norm: [B, H, W, C] -> [B, H/2, W/2, 2C]."""

    def __init__(self, channels: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.conv = operations.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False, **kw)
        self.norm = nn.Sequential(ChannelsLast(), operations.LayerNorm(2 * channels, eps=EPS, **kw))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x.movedim(-1, 1)))


class Level(nn.Module):
    """Blocks and a norm.

    `post_norms` are those behind the blocks `post_norm_blocks`. The last level has no `downsample`.
    """

    def __init__(self, config: InternImageConfig, level: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        channels = config.channels[level]
        self.blocks = nn.ModuleList(
            InternImageBlock(
                channels, config.groups[level], config.intermediate_size << level, operations=operations, **kw
            )
            for _ in range(config.depths[level])
        )
        self.post_norm_blocks = config.post_norm_blocks if level == 2 else ()
        self.post_norms = nn.ModuleList(
            nn.Sequential(operations.LayerNorm(channels, eps=EPS, **kw)) for _ in self.post_norm_blocks
        )
        self.norm = nn.Sequential(operations.LayerNorm(channels, eps=EPS, **kw))
        is_last = level + 1 == len(config.depths)
        self.downsample = None if is_last else Downsample(channels, operations=operations, **kw)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output, of x's shape [B, H, W, C], and the next level's input (the output, if there is none)."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.post_norm_blocks:
                x = self.post_norms[self.post_norm_blocks.index(index)](x)
        x = self.norm(x)
        return x, x if self.downsample is None else self.downsample(x)


class InternImage(nn.Module):
    """The backbone."""

    def __init__(self, config: InternImageConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(operations=operations, dtype=dtype, device=device)
        self.config = config
        self.channels = config.channels
        self.patch_embed = PatchEmbed(config.embed_dim, **kw)
        self.levels = nn.ModuleList(Level(config, level, **kw) for level in range(len(config.depths)))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return four normed maps [B, C_i, H/4.., W/4..] of images [B, 3, H, W]; H and W must be multiples of 32."""
        x = self.patch_embed(images)
        maps = []
        for level in self.levels:
            output, x = level(x)
            maps.append(output.movedim(-1, 1))
        return maps
