"""The adapters to train, of every family, with what they replace in the MODEL: text states in, a context out.

Their state dicts are the published files' but for the names of `in_proj`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from ..conditioning.adapter import MLP_RATIO, AdapterShape, LanguageAdapter, from_published
from ..conditioning.adapter_sdxl import (
    AdapterShapeXL,
    AnyAdapterShape,
    LanguageAdapterXL,
    ProjectionShape,
    TextProjection,
)
from ..conditioning.families import PIXART, SDXL, Family
from ..conditioning.model_files import open_adapter
from .diffusion import Context
from .text_states import TextStates

if TYPE_CHECKING:
    from ..conditioning.encoder_files import AnyTextEncoderFile  # imports ComfyUI

SDXL_HALVES = (1280, 768)
SIZES, SIZE_CHANNELS = 6, 256  # SDXL's numbers about an image, and the sinusoids of each
# What SDXL's adapters are published with: a size embedding of their own or none, and where the pooled vector comes from
LAYOUTS = ("noembed_attnpool", "noembed_textproj", "embed_attnpool", "embed_textproj")


@dataclass(frozen=True)
class AdapterPlan:
    """What decides an adapter's shape: the family, the widths on both sides, and the choices.

    context_dim: the width of what cross-attention reads. projection_dim: of the text encoder's pooled vector.
    """

    family: Family
    text_hidden_size: int
    projection_dim: int | None
    context_dim: int
    num_queries: int = 120
    layout: str = LAYOUTS[0]

    def shape(self) -> AnyAdapterShape:
        """Return the sizes. Raises ValueError for a layout that the text encoder cannot serve."""
        if self.family is PIXART:
            return ProjectionShape(self.text_hidden_size, self.context_dim)
        if self.family is not SDXL:
            return self._half(self.context_dim)
        projects = self.layout.endswith("textproj")
        if projects and self.projection_dim is None:
            raise ValueError(
                f"the layout {self.layout} projects the text encoder's pooled vector, and this text encoder has no "
                f"`text_projection`: use --layout {self.layout.replace('textproj', 'attnpool')}"
            )
        first, second = map(self._half, SDXL_HALVES)
        return AdapterShapeXL(first, second, SDXL_HALVES[0], self.projection_dim if projects else None)

    def _half(self, context_dim: int) -> AdapterShape:
        return AdapterShape(self.text_hidden_size, context_dim, self.num_queries, MLP_RATIO * context_dim)


class OneAdapter(LanguageAdapter):
    """SD1.5's and SD2.1's."""

    def forward(self, states: TextStates) -> Context:
        return Context(super().forward(states.rows))


class SizeEmbedding(nn.Module):
    """SDXL's `add_embedding`: the vector [B, in_dim] -> [B, dim], which the UNet adds to its timestep's embedding."""

    def __init__(self, in_dim: int, dim: int, device=None):
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim, device=device)
        self.linear_2 = nn.Linear(dim, dim, device=device)

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(vector)))


class TwoAdapters(LanguageAdapterXL):
    """SDXL's; `embeds`: with a size embedding of its own.

    The pooled vector of an empty caption is zeros, as the nodes give it to a negative.
    """

    def __init__(self, shape: AdapterShapeXL, embeds: bool, device=None):
        super().__init__(shape, device=device)
        self.add_embedding = (
            SizeEmbedding(shape.pooled_dim + SIZES * SIZE_CHANNELS, SDXL_HALVES[0], device) if embeds else None
        )

    def forward(self, states: TextStates) -> Context:
        rows = super().forward(states.rows)
        pooled = self.pool(rows, states.pooled) * ~states.is_empty[:, None]
        sizes = states.sizes
        assert sizes is not None, "SDXL's examples have sizes"  # noqa: S101
        vector = torch.cat([pooled, size_vector(sizes).to(pooled)], dim=1)
        return Context(rows, vector=vector, embedding=self.add_embedding(vector) if self.add_embedding else None)


class Projection(TextProjection):
    """PixArt's, which takes the place of the MODEL's caption projection."""

    def forward(self, states: TextStates) -> Context:
        return Context(super().forward(states.rows), mask=states.mask)


TrainedAdapter = OneAdapter | TwoAdapters | Projection


def size_vector(sizes: torch.Tensor) -> torch.Tensor:
    """Return SDXL's sinusoids [B, 6 * 256] float32 of sizes [B, 6]: of each number the cosines, then the sines."""
    half = SIZE_CHANNELS // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=sizes.device, dtype=torch.float32) / half)
    angles = sizes.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)


def build_adapter(shape: AnyAdapterShape, embeds: bool = False, device=None) -> TrainedAdapter:
    """Build an adapter of this shape, float32, its weights not set; `embeds`: with SDXL's size embedding."""
    if isinstance(shape, AdapterShapeXL):
        return TwoAdapters(shape, embeds, device)
    if isinstance(shape, AdapterShape):
        return OneAdapter(shape, device=device)
    return Projection(shape.text_hidden_size, shape.context_dim, device=device)


def fresh_adapter(plan: AdapterPlan, seed: int, size_embedding: nn.Module | None = None) -> TrainedAdapter:
    """Build an adapter with initial weights; those of a size embedding of its own are the base's."""
    adapter = build_adapter(plan.shape(), plan.layout.startswith("embed"))
    init_weights(adapter, seed)
    if isinstance(adapter, TwoAdapters) and adapter.add_embedding is not None:
        assert size_embedding is not None, "every SDXL base has one"  # noqa: S101
        weights = {name: tensor.float().cpu() for name, tensor in size_embedding.state_dict().items()}
        adapter.add_embedding.load_state_dict(weights)
    return adapter


def load_adapter(path: Path, plan: AdapterPlan, text_encoder: AnyTextEncoderFile) -> TrainedAdapter:
    """Load an adapter to train on. Raises ValueError for one of another family, text encoder or width."""
    from ..conditioning.encoder_files import check_pair  # imports ComfyUI

    file = open_adapter(path)
    if file.family is not plan.family:
        raise ValueError(f"{path} is an adapter for {file.family.title}, but the base is {plan.family.title}")
    if file.shape.context_dim != plan.context_dim:
        raise ValueError(
            f"{path} gives contexts of width {file.shape.context_dim}, but the base reads {plan.context_dim}"
        )
    check_pair(text_encoder, file)
    adapter = build_adapter(file.shape, any(name.startswith("add_embedding.") for name in file.names))
    tensors = {name: file.file.read(stored).float() for name, stored in file.names.items()}
    adapter.load_state_dict(from_published(tensors))
    return adapter


def init_weights(adapter: nn.Module, seed: int) -> None:
    """Initialize the weights in place as `torch.nn.Transformer` does; queries and positions are normal.

    Matrices are Xavier-uniform, biases zero, norms identities.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if name.endswith("queries"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif name.endswith("positional_embedding"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
            elif parameter.ndim > 1:
                parameter.copy_(torch.nn.init.xavier_uniform_(torch.empty(parameter.shape), generator=generator))
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
