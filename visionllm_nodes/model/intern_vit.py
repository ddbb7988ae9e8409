"""InternViT-6B, the vision tower of the 26B model: RMS norms, normed queries and keys, a scale on each branch (Chen et al. 2023).

Same interface as the 7B model's tower (vision_tower.py).
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from .feed_forward import FeedForward

EPS = 1e-6


@dataclass(frozen=True)
class InternViTConfig:
    width: int
    feed_forward: int
    layers: int
    heads: int
    patch: int  # pixels
    picture: int  # pixels, height and width

    @property
    def patches(self) -> int:
        """Tokens per picture."""
        return (self.picture // self.patch) ** 2


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.heads = heads
        self.qkv = operations.Linear(width, 3 * width, bias=False, **kw)
        self.q_norm = operations.RMSNorm(width, eps=EPS, **kw)
        self.k_norm = operations.RMSNorm(width, eps=EPS, **kw)
        self.out = operations.Linear(width, width, **kw)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        heads = (rearrange(rows, "b t (h d) -> b h t d", h=self.heads) for rows in (self.q_norm(q), self.k_norm(k), v))
        return self.out(rearrange(F.scaled_dot_product_attention(*heads), "b h t d -> b t (h d)"))


class Layer(nn.Module):
    def __init__(self, config: InternViTConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.norm1 = operations.RMSNorm(config.width, eps=EPS, **kw)
        self.attention = Attention(config.width, config.heads, operations=operations, **kw)
        self.scale1 = nn.Parameter(torch.empty(config.width, **kw))
        self.norm2 = operations.RMSNorm(config.width, eps=EPS, **kw)
        self.feed_forward = FeedForward(config.width, config.feed_forward, operations=operations, **kw)
        self.scale2 = nn.Parameter(torch.empty(config.width, **kw))

    def forward(self, x):
        x = x + self.attention(self.norm1(x)) * self.scale1.to(x)
        return x + self.feed_forward(self.norm2(x)) * self.scale2.to(x)


class InternViT(nn.Module):
    def __init__(self, config: InternViTConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.config = config
        self.patch = operations.Conv2d(3, config.width, config.patch, stride=config.patch, **kw)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.width, **kw))
        self.positions = nn.Parameter(torch.empty(1, 1 + config.patches, config.width, **kw))
        self.layers = nn.ModuleList(Layer(config, operations=operations, **kw) for _ in range(config.layers))

    def forward(self, pictures: torch.Tensor, layers: tuple[int, ...] = (-1,)) -> list[torch.Tensor]:
        """pictures [N, 3, S, S] -> per asked layer (-1: the last) the patches' states [N, patches, width], without the class token."""
        wanted = [layer % (self.config.layers + 1) for layer in layers]
        patches = self.patch(pictures).flatten(2).transpose(1, 2)
        states = torch.cat((self.class_token.to(patches).expand(len(patches), -1, -1), patches), dim=1) + self.positions.to(patches)
        found = {0: states}
        for index, layer in enumerate(self.layers[:max(wanted)], 1):
            states = layer(states)
            if index in wanted:
                found[index] = states
        return [found[index][:, 1:] for index in wanted]
