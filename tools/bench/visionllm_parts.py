"""Two parts of the decoders beside how others compute them: deformable attention, and the branch that makes masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.grounding_dino.modeling_grounding_dino import MultiScaleDeformableAttention

from mulan_nodes.visionllm_nodes.model.deformable_attention import sample_pyramid
from mulan_nodes.visionllm_nodes.model.grounding_decoder import GroundingDecoder, GroundingOutput


@dataclass(frozen=True)
class Canvas:
    """The pyramid of a decoder's image and how many of the queries get masks.

    By default 800 x 1333 padded, as published.
    """

    levels: tuple[tuple[int, int], ...] = ((100, 168), (50, 84), (25, 42), (13, 21))
    heads: int = 8
    points: int = 4
    channels: int = 32
    chosen: int = 100


@dataclass(frozen=True)
class Compared:
    """Two ways to one result; `theirs` may give more, of which `same` takes what ours gives."""

    ours: Callable[[], torch.Tensor]
    theirs: Callable[[], torch.Tensor | list[torch.Tensor]]
    same: Callable = lambda result: result


def deformable_attention(canvas: Canvas) -> Compared:
    """Every cell of the pyramid looks at points around itself, as in the encoder.

    They are spread over about two cells of each level.
    """
    random = torch.Generator().manual_seed(1)
    cells = [
        torch.stack(
            torch.meshgrid(*((torch.arange(side) + 0.5) / side for side in level), indexing="ij")[::-1], -1
        ).flatten(0, 1)
        for level in canvas.levels
    ]
    centers = torch.cat(cells)[None, :, None, None, None]
    count, shape = centers.shape[1], (canvas.heads, len(canvas.levels), canvas.points)
    sizes = torch.tensor([(columns, rows) for rows, columns in canvas.levels], dtype=torch.float32)
    points = centers + 2 * torch.randn(1, count, *shape, 2, generator=random) / sizes[:, None]
    weights = (
        torch.randn(1, count, canvas.heads, len(canvas.levels) * canvas.points, generator=random)
        .softmax(-1)
        .unflatten(-1, shape[1:])
    )
    value = torch.randn(1, count, canvas.heads, canvas.channels, generator=random)
    theirs = MultiScaleDeformableAttention()
    return Compared(
        lambda: sample_pyramid(value, canvas.levels, points, weights),
        lambda: theirs(value, sizes.flip(-1).long(), list(canvas.levels), None, points, weights, 64),
    )


def masks(decoder: GroundingDecoder, canvas: Canvas, *, with_features: bool) -> Compared:
    """Masks of the chosen queries of the last layer.

    Upstream makes those of every query of every layer, and once more of the learned ones, which it drops.

    with_features: with the convolutions that make what the queries are multiplied with, the same on both sides.
    Upstream's masks are held once here; stacking the layers, as it does, holds them twice for a moment.
    """
    random = torch.Generator().manual_seed(2)
    config = decoder.config
    rows, columns = canvas.levels[0]
    states = torch.randn(config.num_layers, 1, config.num_queries, config.hidden_size, generator=random)
    index = torch.randperm(config.num_queries, generator=random)[None, : canvas.chosen]
    finest = torch.randn(1, config.backbone.channels[0], 2 * rows, 2 * columns, generator=random)
    encoded = torch.randn(1, config.hidden_size, rows, columns, generator=random)
    made = torch.randn(1, config.mask_channels, 2 * rows, 2 * columns, generator=random)

    def features():
        return decoder.make_mask_features(finest, encoded) if with_features else made

    def ours():
        unused: Any = None  # masks need the states and the features alone
        return decoder.masks(GroundingOutput(unused, unused, states, features(), unused), index)

    def theirs():
        mask_features = features()
        decoder.mask_logits(decoder.initial_hidden_states(states.device)[None], mask_features)
        return [decoder.mask_logits(layer, mask_features) for layer in states]

    return Compared(ours, theirs, lambda layers: layers[-1][:, index[0]])
