"""InternVL's chat models: InternViT, a projector, a language model (Chen et al. 2024, arXiv 2412.05271; Zhu et al.
2025, arXiv 2504.10479).

Modules have OpenGVLab's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from einops import rearrange
from torch import nn

from ..internvl.intern_vit import InternViT, InternViTConfig
from .chat_language_model import LanguageConfig, LanguageModel


@dataclass(frozen=True)
class ChatConfig:
    """Sizes of a chat model."""

    vision: InternViTConfig
    language: LanguageConfig
    merge_size: int = 2  # so many neighboring patches in each direction become one token

    @property
    def tokens_per_tile(self) -> int:
        return self.vision.num_patches // self.merge_size**2


class Projector(nn.Sequential):
    """[..., hidden states of merged patches] -> [..., hidden size of the language model]."""

    def __init__(self, config: ChatConfig, *, operations: Any, dtype=None, device=None):
        kw = dict(dtype=dtype, device=device)
        vision_size, language_size = config.vision.hidden_size * config.merge_size**2, config.language.hidden_size
        super().__init__(
            operations.LayerNorm(vision_size, **kw),
            operations.Linear(vision_size, language_size, **kw),
            nn.GELU(),
            operations.Linear(language_size, language_size, **kw),
        )


class InternVLChat(nn.Module):
    """The model. `language_operations`: for a language model whose weights are quantized."""

    def __init__(
        self, config: ChatConfig, *, operations: Any, language_operations: Any = None, dtype=None, device=None
    ):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.config = config
        self.vision_model = InternViT(config.vision, operations=operations, **kw)
        self.mlp1 = Projector(config, operations=operations, **kw)
        self.language_model = LanguageModel(config.language, operations=language_operations or operations, **kw)

    def encode_tiles(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return normalized tiles [N, 3, S, S] as the language model reads them, [N, tokens, hidden_size]."""
        (hidden_states,) = self.vision_model(tiles)
        merge_size = self.config.merge_size
        side = self.config.vision.image_size // self.config.vision.patch_size // merge_size
        merged = rearrange(
            hidden_states, "n (y i x j) c -> n (y x) (i j c)", y=side, i=merge_size, x=side, j=merge_size
        )
        return self.mlp1(merged)

    def embed(self, prompt: Sequence[int | torch.Tensor], device=None, dtype=None) -> torch.Tensor:
        """Return the embeddings [1, T, hidden_size] of ids and, in their places, of encoded images [n, hidden_size]."""
        embed_tokens, parts = self.language_model.model.embed_tokens, []
        for is_image, run in groupby(prompt, lambda part: isinstance(part, torch.Tensor)):
            entries: list[Any] = list(run)
            rows = torch.cat(entries) if is_image else embed_tokens(torch.tensor(entries, device=device))
            parts.append(rows.to(device=device, dtype=dtype))
        return torch.cat(parts)[None]
