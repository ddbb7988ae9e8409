"""Swin transformer, the backbone of the grounding and pose decoders (Liu et al. 2021, arXiv 2103.14030).

Modules have the names of Microsoft's release, which the pose decoder's checkpoint has too. Windows never shrink: a map
smaller than a window is padded to one. Padding is zero behind the norm and takes part in attention, as upstream's
does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from ...mulan.internvl.intern_vit import FeedForward

EPS = 1e-5
PATCH_SIZE = 4
MASKED = -100.0  # added to the scores of tokens that only the cyclic shift made neighbors


@dataclass(frozen=True)
class SwinConfig:
    """`embed_dim` channels after the patch embedding, doubled per stage; `normed`: which stages have an output norm."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int
    intermediate_size: int  # of the first stage's perceptrons, doubled per stage
    normed: tuple[bool, ...]

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage's output."""
        return tuple(self.embed_dim << stage for stage in range(len(self.depths)))


def relative_position_index(window_size: int, device: torch.device | None = None) -> torch.Tensor:
    """Return [window_size^2, window_size^2] int64: the row of the bias table for each pair of tokens of a window."""
    offsets = torch.arange(window_size, device=device)
    row, column = offsets.repeat_interleave(window_size), offsets.repeat(window_size)
    largest = window_size - 1
    return (row[:, None] - row + largest) * (2 * window_size - 1) + column[:, None] - column + largest


def window_partition(x: torch.Tensor, window_size: int) -> torch.Tensor:
    """Cut maps into windows: [B, H, W, C] -> [B * windows, window_size^2, C].

    H and W must be multiples of `window_size`.
    """
    return rearrange(x, "b (h i) (w j) c -> (b h w) (i j) c", i=window_size, j=window_size)


def shift_mask(height: int, width: int, window_size: int, shift: int, device: torch.device | None = None):
    """Return which tokens of a shifted map may meet: 0, else `MASKED`, float32 [windows, window_size^2, window_size^2].

    `height` and `width` are those of the padded map.
    """

    def band(length: int) -> torch.Tensor:
        positions = torch.arange(length, device=device)
        return (positions >= length - window_size).long() + (positions >= length - shift).long()

    region = 3 * band(height)[:, None] + band(width)
    region = window_partition(region[None, :, :, None], window_size).squeeze(-1)
    return (region[:, :, None] != region[:, None]).float() * MASKED


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias per relative position and head."""

    def __init__(self, hidden_size: int, num_heads: int, window_size: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = operations.Linear(hidden_size, 3 * hidden_size, **kw)
        self.proj = operations.Linear(hidden_size, hidden_size, **kw)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads, **kw))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attend within each window: x [B * windows, T, C], mask [windows, T, T] or None -> x's shape."""
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.num_heads)
        index = relative_position_index(self.window_size, x.device)
        bias = self.relative_position_bias_table.to(x)[index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask.to(bias)[:, None]).repeat(len(x) // len(mask), 1, 1, 1)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=bias), "b h t d -> b t (h d)"))


class SwinBlock(nn.Module):
    """Attention within windows and a perceptron, each behind a norm and added."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        window_size: int,
        shift: int,
        *,
        operations: Any,
        dtype=None,
        device=None,
    ):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.window_size = window_size
        self.shift = shift
        self.norm1 = operations.LayerNorm(hidden_size, eps=EPS, **kw)
        self.attn = WindowAttention(hidden_size, num_heads, window_size, operations=operations, **kw)
        self.norm2 = operations.LayerNorm(hidden_size, eps=EPS, **kw)
        self.mlp = FeedForward(hidden_size, intermediate_size, operations=operations, **kw)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the block's output, of the shape of x [B, H, W, C].

        `mask` is that of `shift_mask` for the padded map; only shifted blocks use it.
        """
        height, width = x.shape[1:3]
        windows = F.pad(self.norm1(x), (0, 0, 0, -width % self.window_size, 0, -height % self.window_size))
        rows, columns = (size // self.window_size for size in windows.shape[1:3])
        if self.shift:
            windows = windows.roll((-self.shift, -self.shift), (1, 2))
        windows = self.attn(window_partition(windows, self.window_size), mask if self.shift else None)
        windows = rearrange(windows, "(b h w) (i j) c -> b (h i) (w j) c", h=rows, w=columns, i=self.window_size)
        if self.shift:
            windows = windows.roll((self.shift, self.shift), (1, 2))
        x = x + windows[:, :height, :width]
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Images [B, 3, H, W] -> [B, H/4, W/4, C]."""

    def __init__(self, hidden_size: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.proj = operations.Conv2d(3, hidden_size, PATCH_SIZE, stride=PATCH_SIZE, **kw)
        self.norm = operations.LayerNorm(hidden_size, eps=EPS, **kw)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(images).movedim(1, -1))


class PatchMerging(nn.Module):
    """[B, H, W, C] -> [B, H/2, W/2, 2C]."""

    def __init__(self, hidden_size: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        self.norm = operations.LayerNorm(4 * hidden_size, eps=EPS, dtype=dtype, device=device)
        self.reduction = operations.Linear(4 * hidden_size, 2 * hidden_size, bias=False, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.reduction(self.norm(rearrange(x, "b (h i) (w j) c -> b h w (j i c)", i=2, j=2)))


class Stage(nn.Module):
    """Blocks in turn without and with a shift.

    `downsample` makes the next stage's input of the output; the last stage has none.
    """

    def __init__(self, config: SwinConfig, stage: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(operations=operations, dtype=dtype, device=device)
        self.window_size = config.window_size
        hidden_size = config.channels[stage]
        self.blocks = nn.ModuleList(
            SwinBlock(
                hidden_size,
                config.num_heads[stage],
                config.intermediate_size << stage,
                config.window_size,
                config.window_size // 2 * (block % 2),
                **kw,
            )
            for block in range(config.depths[stage])
        )
        self.downsample = PatchMerging(hidden_size, **kw) if stage + 1 < len(config.depths) else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output, of x's shape [B, H, W, C], and the next stage's input (the output, if there is none)."""
        height, width = (size + -size % self.window_size for size in x.shape[1:3])
        mask = shift_mask(height, width, self.window_size, self.window_size // 2, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x, x if self.downsample is None else self.downsample(x)


class Swin(nn.Module):
    """The backbone. `norm{stage}` exists for the stages that `config.normed` names."""

    def __init__(self, config: SwinConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.config = config
        self.channels = config.channels
        self.patch_embed = PatchEmbed(config.embed_dim, operations=operations, **kw)
        self.layers = nn.ModuleList(
            Stage(config, stage, operations=operations, **kw) for stage in range(len(config.depths))
        )
        for stage, (channels, normed) in enumerate(zip(config.channels, config.normed, strict=True)):
            if normed:
                self.add_module(f"norm{stage}", operations.LayerNorm(channels, eps=EPS, **kw))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return four maps [B, C_i, H/4.., W/4..] of images [B, 3, H, W], normed where the config says so.

        H and W must be multiples of 32.
        """
        x = self.patch_embed(images)
        maps = []
        for index, stage in enumerate(self.layers):
            output, x = stage(x)
            if self.config.normed[index]:
                output = getattr(self, f"norm{index}")(output)
            maps.append(output.movedim(-1, 1))
        return maps
