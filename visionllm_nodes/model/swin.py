"""Swin transformer, the backbone of the grounding and pose decoders (Liu et al. 2021).

Windows never shrink: a map smaller than a window is padded to one. Padding is zero behind the norm and takes part in attention, as upstream's does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from ...mulan.internvl.feed_forward import FeedForward

EPS = 1e-5
PATCH = 4
APART = -100.0  # added to the scores of tokens that only the cyclic shift made neighbours


@dataclass(frozen=True)
class SwinConfig:
    """`width` channels after the patch embedding, doubled per stage; `normed`: which of the four outputs have a norm."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    hidden: int  # of the first stage's perceptron, doubled per stage
    normed: tuple[bool, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.width << stage for stage in range(len(self.depths)))


def relative_position_index(window: int, device=None) -> torch.Tensor:
    """[window^2, window^2] int64: the row of the bias table for each pair of tokens of a window."""
    place = torch.arange(window, device=device)
    row, column = place.repeat_interleave(window), place.repeat(window)
    apart = window - 1
    return (row[:, None] - row + apart) * (2 * window - 1) + column[:, None] - column + apart


def windows(x: torch.Tensor, size: int) -> torch.Tensor:
    """[B, H, W, C] -> [B * windows, size^2, C]; H and W are multiples of `size`."""
    return rearrange(x, "b (h i) (w j) c -> (b h w) (i j) c", i=size, j=size)


def shift_mask(height: int, width: int, window: int, shift: int, device=None) -> torch.Tensor:
    """[windows, window^2, window^2] float32: 0 where two tokens of a shifted map may meet, else `APART`."""

    def band(length):
        place = torch.arange(length, device=device)
        return (place >= length - window).long() + (place >= length - shift).long()

    region = 3 * band(height)[:, None] + band(width)
    region = windows(region[None, :, :, None], window).squeeze(-1)
    return (region[:, :, None] != region[:, None]).float() * APART


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias per relative position and head."""

    def __init__(self, width: int, heads: int, window: int, *, operations, dtype=None, device=None):
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = operations.Linear(width, 3 * width, dtype=dtype, device=device)
        self.out = operations.Linear(width, width, dtype=dtype, device=device)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads, dtype=dtype, device=device))

    def forward(self, x, mask=None):
        """x [B * windows, T, C], mask [windows, T, T] or None -> x's shape."""
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        bias = self.bias_table.to(x)[relative_position_index(self.window, x.device)].permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask.to(bias)[:, None]).repeat(len(x) // len(mask), 1, 1, 1)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=bias), "b h t d -> b t (h d)"))


class SwinBlock(nn.Module):
    def __init__(
        self, width: int, heads: int, hidden: int, window: int, shift: int, *, operations, dtype=None, device=None
    ):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.window = window
        self.shift = shift
        self.norm1 = operations.LayerNorm(width, eps=EPS, **kw)
        self.attention = WindowAttention(width, heads, window, operations=operations, **kw)
        self.norm2 = operations.LayerNorm(width, eps=EPS, **kw)
        self.feed_forward = FeedForward(width, hidden, operations=operations, **kw)

    def forward(self, x, mask):
        """x [B, H, W, C], mask: that of `shift_mask` for the padded map, used by shifted blocks only -> x's shape."""
        height, width = x.shape[1:3]
        own = F.pad(self.norm1(x), (0, 0, 0, -width % self.window, 0, -height % self.window))
        rows, columns = (size // self.window for size in own.shape[1:3])
        if self.shift:
            own = own.roll((-self.shift, -self.shift), (1, 2))
        own = self.attention(windows(own, self.window), mask if self.shift else None)
        own = rearrange(own, "(b h w) (i j) c -> b (h i) (w j) c", h=rows, w=columns, i=self.window)
        if self.shift:
            own = own.roll((self.shift, self.shift), (1, 2))
        x = x + own[:, :height, :width]
        return x + self.feed_forward(self.norm2(x))


class PatchMerging(nn.Module):
    """[B, H, W, C] -> [B, H/2, W/2, 2C]."""

    def __init__(self, width: int, *, operations, dtype=None, device=None):
        super().__init__()
        self.norm = operations.LayerNorm(4 * width, eps=EPS, dtype=dtype, device=device)
        self.reduce = operations.Linear(4 * width, 2 * width, bias=False, dtype=dtype, device=device)

    def forward(self, x):
        return self.reduce(self.norm(rearrange(x, "b (h i) (w j) c -> b h w (j i c)", i=2, j=2)))


class Stage(nn.Module):
    def __init__(
        self, width: int, heads: int, hidden: int, depth: int, window: int, *, operations, dtype=None, device=None
    ):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(
                width,
                heads,
                hidden,
                window,
                window // 2 * (block % 2),
                operations=operations,
                dtype=dtype,
                device=device,
            )
            for block in range(depth)
        )

    def forward(self, x):
        padded = [size + -size % self.window for size in x.shape[1:3]]
        mask = shift_mask(*padded, self.window, self.window // 2, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x


class Swin(nn.Module):
    def __init__(self, config: SwinConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.config = config
        self.widths = config.widths
        self.patch = operations.Conv2d(3, config.width, PATCH, stride=PATCH, **kw)
        self.patch_norm = operations.LayerNorm(config.width, eps=EPS, **kw)
        self.stages = nn.ModuleList(
            Stage(width, heads, config.hidden << stage, depth, config.window, operations=operations, **kw)
            for stage, (width, heads, depth) in enumerate(zip(self.widths, config.heads, config.depths))
        )
        self.merges = nn.ModuleList(PatchMerging(width, operations=operations, **kw) for width in self.widths[:-1])
        self.norms = nn.ModuleList(
            operations.LayerNorm(width, eps=EPS, **kw) if normed else nn.Identity()
            for width, normed in zip(self.widths, config.normed)
        )

    def forward(self, images):
        """images [B, 3, H, W], H and W multiples of 32 -> four maps [B, C_i, H/4.., W/4..], normed where the config says so."""
        x = self.patch_norm(self.patch(images).movedim(1, -1))
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(self.merges[index - 1](x) if index else x)
            maps.append(self.norms[index](x).movedim(-1, 1))
        return maps
