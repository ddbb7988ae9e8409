"""InternVL's chat models: InternViT, a projector, a language model (Chen et al. 2024, arXiv 2412.05271; Zhu et al.
2025, arXiv 2504.10479). The Flash models also have a router and a second projector.

Modules have OpenGVLab's names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from einops import rearrange
from torch import nn

from ..checkpoints.language_model import LanguageConfig
from ..internvl.intern_vit import InternViT, InternViTConfig
from .chat_language_model import LanguageModel
from .chat_router import CoarseProjector, Gating, RouterConfig, TilePooling

COARSER = 2  # a compressed tile merges so many times more patches in each direction


@dataclass(frozen=True)
class ChatConfig:
    """Sizes of a chat model."""

    vision: InternViTConfig
    language: LanguageConfig
    merge_size: int = 2  # so many neighboring patches in each direction become one token
    router: RouterConfig | None = None  # of the Flash models

    @property
    def tokens_per_tile(self) -> int:
        """Tokens of a tile that is not compressed."""
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
        if config.router is not None:
            size, own = config.vision.hidden_size, dict(operations=operations, **kw)
            self.mlp2 = CoarseProjector(size * (COARSER * config.merge_size) ** 2, config.language.hidden_size, **own)
            self.pooling_before_gating = TilePooling(size, **own)
            self.gating = Gating(size, **own)
        self.language_model = LanguageModel(config.language, operations=language_operations or operations, **kw)

    def encode_tiles(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return normalized tiles [N, 3, S, S] as the language model reads them, [N, tokens, hidden_size]."""
        (patches,) = self.vision_model(tiles)
        return self.mlp1(self._merge(patches, self.config.merge_size))

    def read_tiles(self, batches: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Return what the language model reads of each tile [tokens, hidden_size]; a Flash model compresses some.

        `batches` [N, 3, S, S] are all tiles of one prompt: which are compressed depends on them all.
        """
        router = self.config.router
        tokens: list[torch.Tensor] = []
        compressed: list[torch.Tensor] = []
        scores = []
        for tiles in batches:
            (patches,) = self.vision_model(tiles)
            tokens += self.mlp1(self._merge(patches, self.config.merge_size))
            if router is not None:
                compressed += self.mlp2(self._merge(patches, COARSER * self.config.merge_size))
                scores.append(self.gating(self.pooling_before_gating(patches)))
        if router is None:
            return tokens
        fits = router.compressed(torch.cat(scores))
        return [few if fit else many for many, few, fit in zip(tokens, compressed, fits, strict=True)]

    def _merge(self, patches: torch.Tensor, size: int) -> torch.Tensor:
        """Return squares of `size` x `size` patches as one each, [N, squares, size^2 * hidden_size]."""
        side = self.config.vision.image_size // self.config.vision.patch_size // size
        return rearrange(patches, "n (y i x j) c -> n (y x) (i j c)", y=side, i=size, x=side, j=size)

    def embed(self, prompt: Sequence[int | torch.Tensor], device=None, dtype=None) -> torch.Tensor:
        """Return the embeddings [1, T, hidden_size] of ids and, in their places, of encoded images [n, hidden_size]."""
        embed_tokens, parts = self.language_model.model.embed_tokens, []
        for is_image, run in groupby(prompt, lambda part: isinstance(part, torch.Tensor)):
            entries: list[Any] = list(run)
            rows = torch.cat(entries) if is_image else embed_tokens(torch.tensor(entries, device=device))
            parts.append(rows.to(device=device, dtype=dtype))
        return torch.cat(parts)[None]
