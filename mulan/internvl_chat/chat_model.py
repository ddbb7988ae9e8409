"""InternVL's dialogue models: InternViT, a projector, a language model (Chen et al. 2024, arXiv 2412.05271; Zhu et al. 2025, arXiv 2504.10479)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from ..internvl.intern_vit import InternViT, InternViTConfig
from .chat_language_model import Language, LanguageConfig


@dataclass(frozen=True)
class ChatConfig:
    vision: InternViTConfig
    language: LanguageConfig
    merged: int = 2  # so many neighbours in each direction become one token

    @property
    def tokens(self) -> int:
        """Tokens per tile."""
        return self.vision.patches // self.merged**2


class Projector(nn.Module):
    """[..., states of merged patches] -> [..., width of the language model]."""

    def __init__(self, config: ChatConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        seen, width = config.vision.width * config.merged**2, config.language.width
        self.norm = operations.LayerNorm(seen, **kw)
        self.up = operations.Linear(seen, width, **kw)
        self.out = operations.Linear(width, width, **kw)

    def forward(self, x):
        return self.out(F.gelu(self.up(self.norm(x))))


class InternVLChat(nn.Module):
    """`language_operations`: for a language model whose weights are quantised."""

    def __init__(self, config: ChatConfig, *, operations, language_operations=None, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.config = config
        self.vision = InternViT(config.vision, operations=operations, **kw)
        self.projector = Projector(config, operations=operations, **kw)
        self.language = Language(config.language, operations=language_operations or operations, **kw)

    def see(self, tiles: torch.Tensor) -> torch.Tensor:
        """Tiles [N, 3, S, S], normalised -> [N, tokens, width] as the language model reads them."""
        (states,) = self.vision(tiles)
        side, merged = self.config.vision.picture // self.config.vision.patch // self.config.merged, self.config.merged
        return self.projector(rearrange(states, "n (y i x j) c -> n (y x) (i j c)", y=side, i=merged, x=side, j=merged))

    def embed(self, prompt: Sequence[int | torch.Tensor], device=None, dtype=None) -> torch.Tensor:
        """Ids, and rows [n, width] of what was seen in their places -> [1, T, width]."""
        embed, parts = self.language.model.embed_tokens, []
        for is_seen, run in groupby(prompt, lambda part: isinstance(part, torch.Tensor)):
            rows = torch.cat(list(run)) if is_seen else embed(torch.tensor(list(run), device=device))
            parts.append(rows.to(device=device, dtype=dtype))
        return torch.cat(parts)[None]
