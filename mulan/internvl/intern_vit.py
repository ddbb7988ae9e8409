"""InternViT, the vision tower of every InternVL and of VisionLLM's 26B model (Chen et al. 2023, arXiv 2312.14238).

A vision transformer with a learned scale on each branch of its layers. The 6B one has RMS norms and normalized queries
and keys, the 300M one has layer norms and a bias on queries, keys and values. Modules have the published names
(OpenGVLab/InternVL, modeling_intern_vit.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

EPS = 1e-6


@dataclass(frozen=True)
class InternViTConfig:
    """Sizes and kind of an InternViT."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int  # pixels
    image_size: int  # pixels, height and width
    rms_norm: bool = True  # else layer norms
    qk_norm: bool = True
    qkv_bias: bool = False

    @property
    def num_patches(self) -> int:
        """Tokens per image, without the class token."""
        return (self.image_size // self.patch_size) ** 2


class FeedForward(nn.Module):
    """Two linear layers with an exact (erf) GELU between them, [..., hidden_size] -> [..., hidden_size]."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, operations: Any, dtype=None, device=None):
        super().__init__()
        self.fc1 = operations.Linear(hidden_size, intermediate_size, dtype=dtype, device=device)
        self.fc2 = operations.Linear(intermediate_size, hidden_size, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Embeddings(nn.Module):
    """Images [N, 3, S, S] -> the hidden states [N, 1 + patches, hidden_size] before the first layer, the class token's
    first.
    """

    def __init__(self, config: InternViTConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        size, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(1, 1, size, **kw))
        self.patch_embedding = operations.Conv2d(3, size, patch, stride=patch, **kw)
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + config.num_patches, size, **kw))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(patches).expand(len(patches), -1, -1)
        return torch.cat((class_token, patches), dim=1) + self.position_embedding.to(patches)


class Attention(nn.Module):
    """Self-attention; queries and keys are normalized over all heads together."""

    def __init__(self, config: InternViTConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.qkv = operations.Linear(size, 3 * size, bias=config.qkv_bias, **kw)
        self.q_norm = operations.RMSNorm(size, eps=EPS, **kw) if config.qk_norm else nn.Identity()
        self.k_norm = operations.RMSNorm(size, eps=EPS, **kw) if config.qk_norm else nn.Identity()
        self.proj = operations.Linear(size, size, **kw)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (
            rearrange(rows, "b t (h d) -> b h t d", h=self.num_heads) for rows in (self.q_norm(q), self.k_norm(k), v)
        )
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)"))


class Layer(nn.Module):
    """Attention and feed-forward, each normalized before and scaled behind, [B, T, hidden_size] -> the same shape."""

    def __init__(self, config: InternViTConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        norm = operations.RMSNorm if config.rms_norm else operations.LayerNorm
        size = config.hidden_size
        self.norm1 = norm(size, eps=EPS, **kw)
        self.attn = Attention(config, operations=operations, **kw)
        self.ls1 = nn.Parameter(torch.empty(size, **kw))
        self.norm2 = norm(size, eps=EPS, **kw)
        self.mlp = FeedForward(size, config.intermediate_size, operations=operations, **kw)
        self.ls2 = nn.Parameter(torch.empty(size, **kw))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x)) * self.ls1.to(x)
        return x + self.mlp(self.norm2(x)) * self.ls2.to(x)


class Encoder(nn.Module):
    """The layers. Walked by `InternViT.all_hidden_states`, which may stop before the last one."""

    def __init__(self, config: InternViTConfig, **kw):
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, **kw) for _ in range(config.num_hidden_layers))


class InternViT(nn.Module):
    """The tower. Its last hidden states are not normalized, as published."""

    def __init__(self, config: InternViTConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(operations=operations, dtype=dtype, device=device)
        self.config = config
        self.embeddings = Embeddings(config, **kw)
        self.encoder = Encoder(config, **kw)

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder.layers

    def forward(self, images: torch.Tensor, layers: tuple[int, ...] = (-1,)) -> list[torch.Tensor]:
        """Return the patches' hidden states [N, patches, hidden_size] behind each of `layers` (0: the embeddings, -1:
        the last layer).

        `images` [N, 3, S, S], normalized.
        """
        return [hidden_states[:, 1:] for hidden_states in self.all_hidden_states(images, layers)]

    def all_hidden_states(self, images: torch.Tensor, layers: tuple[int, ...] = (-1,)) -> list[torch.Tensor]:
        """Return the same with the class token first, [N, 1 + patches, hidden_size] each."""
        wanted = [layer % (self.config.num_hidden_layers + 1) for layer in layers]
        hidden_states = self.embeddings(images)
        found = {0: hidden_states}
        for index, layer in enumerate(self.layers[: max(wanted)], 1):
            hidden_states = layer(hidden_states)
            if index in wanted:
                found[index] = hidden_states
        return [found[index] for index in wanted]
