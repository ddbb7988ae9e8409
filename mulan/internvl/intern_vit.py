"""InternViT, the vision tower of every InternVL and of VisionLLM's 26B model (Chen et al. 2023): a scale on each branch of its layers.

The 6B one has RMS norms and normed queries and keys, the 300M one plain layer norms and a bias on queries, keys and values.
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
    rms_norm: bool = True  # else layer norms
    qk_norm: bool = True
    qkv_bias: bool = False

    @property
    def patches(self) -> int:
        """Tokens per picture."""
        return (self.picture // self.patch) ** 2


class Attention(nn.Module):
    def __init__(self, config: InternViTConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.heads = config.heads
        self.qkv = operations.Linear(config.width, 3 * config.width, bias=config.qkv_bias, **kw)
        self.q_norm = operations.RMSNorm(config.width, eps=EPS, **kw) if config.qk_norm else nn.Identity()
        self.k_norm = operations.RMSNorm(config.width, eps=EPS, **kw) if config.qk_norm else nn.Identity()
        self.out = operations.Linear(config.width, config.width, **kw)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        heads = (rearrange(rows, "b t (h d) -> b h t d", h=self.heads) for rows in (self.q_norm(q), self.k_norm(k), v))
        return self.out(rearrange(F.scaled_dot_product_attention(*heads), "b h t d -> b t (h d)"))


class Layer(nn.Module):
    def __init__(self, config: InternViTConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        norm = operations.RMSNorm if config.rms_norm else operations.LayerNorm
        self.norm1 = norm(config.width, eps=EPS, **kw)
        self.attention = Attention(config, operations=operations, **kw)
        self.scale1 = nn.Parameter(torch.empty(config.width, **kw))
        self.norm2 = norm(config.width, eps=EPS, **kw)
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
        return [states[:, 1:] for states in self.all_states(pictures, layers)]

    def all_states(self, pictures: torch.Tensor, layers: tuple[int, ...] = (-1,)) -> list[torch.Tensor]:
        """The same with the class token first: [N, 1 + patches, width]."""
        wanted = [layer % (self.config.layers + 1) for layer in layers]
        patches = self.patch(pictures).flatten(2).transpose(1, 2)
        states = torch.cat(
            (self.class_token.to(patches).expand(len(patches), -1, -1), patches), dim=1
        ) + self.positions.to(patches)
        found = {0: states}
        for index, layer in enumerate(self.layers[: max(wanted)], 1):
            states = layer(states)
            if index in wanted:
                found[index] = states
        return [found[index] for index in wanted]
