"""From the backbone's maps to one sequence of cells of several levels, and from that to the first boxes.

Source: Deformable DETR (Zhu et al. 2021, arXiv 2010.04159), sections 4.1 and 4.2 (two-stage), as Grounding DINO and
UniPose use them. The two decoders' checkpoints name these weights differently, so they are given to the functions here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .layers import MLP, image_positions

NUM_GROUPS = 32  # of GroupNorm; must divide the hidden size
BACKBONE_MAPS = 3  # that become levels
FIRST_SIDE = 0.05  # side of a proposal of the finest level before refinement, doubled with each level


@dataclass(frozen=True)
class Pyramid:
    """The levels one after the other, S cells in all, rows first.

    features, positions [B, S, D]; mask bool [B, S] (True: image); shapes (height, width) per level;
    ratios float32 [B, levels, 2]: the share (width, height) of each padded level that is image.
    """

    features: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    shapes: tuple[tuple[int, int], ...]
    ratios: torch.Tensor

    def level_mask(self, level: int) -> torch.Tensor:
        """Return bool [B, height, width]."""
        sizes = [rows * columns for rows, columns in self.shapes]
        return self.mask.split(sizes, dim=1)[level].unflatten(1, self.shapes[level])


def level_projections(
    channels: Sequence[int], num_levels: int, hidden_size: int, *, operations: Any, dtype=None, device=None
) -> nn.ModuleList:
    """Make a projection per backbone map, and for each further level one that halves the level before it.

    The first of those halves the last map itself.
    """
    kw = dict(dtype=dtype, device=device)

    def projection(count: int, **window) -> nn.Sequential:
        return nn.Sequential(
            operations.Conv2d(count, hidden_size, **window, **kw), operations.GroupNorm(NUM_GROUPS, hidden_size, **kw)
        )

    projections = [projection(count, kernel_size=1) for count in channels]
    for level in range(len(channels), num_levels):
        count = channels[-1] if level == len(channels) else hidden_size
        projections.append(projection(count, kernel_size=3, stride=2, padding=1))
    return nn.ModuleList(projections)


def build_pyramid(
    maps: Sequence[torch.Tensor],
    pixel_mask: torch.Tensor,
    projections: nn.ModuleList,
    level_embed: torch.Tensor,
    temperature: float,
) -> Pyramid:
    """Project the backbone's maps to levels of one width.

    maps [B, channels, height, width] of the first levels; pixel_mask bool [B, H, W] (True: image);
    `projections`: those of `level_projections`; level_embed [levels, D] is added to the positions; `temperature`: of
    the positions' sine waves.
    """
    sources, levels = [*maps, maps[-1]], []
    for level, project in enumerate(projections):
        levels.append(project(sources[level] if level < len(sources) else levels[-1]))
    masks = [F.interpolate(pixel_mask[None].float(), size=level.shape[-2:])[0] > 0.5 for level in levels]
    positions = [
        image_positions(mask, level.shape[1], temperature).to(level) + embedding
        for mask, level, embedding in zip(masks, levels, level_embed.to(levels[0]), strict=True)
    ]
    return Pyramid(
        features=torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1),
        positions=torch.cat(positions, dim=1),
        mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
        shapes=tuple((level.shape[-2], level.shape[-1]) for level in levels),
        ratios=torch.stack(
            [torch.stack([mask[:, 0].float().mean(1), mask[:, :, 0].float().mean(1)], dim=-1) for mask in masks], dim=1
        ),
    )


def _cell_centers(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Return float32 [rows * columns, 2]: x, y of each cell's center, in cells."""
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float32, device=device) + 0.5,
        torch.arange(columns, dtype=torch.float32, device=device) + 0.5,
        indexing="ij",
    )
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def cell_references(pyramid: Pyramid) -> torch.Tensor:
    """Return float32 [B, S, levels, 2]: x, y of each cell's own center, in 0..1 of each padded level."""
    centers = []
    for level, (rows, columns) in enumerate(pyramid.shapes):
        size = pyramid.ratios.new_tensor([columns, rows])
        centers.append(_cell_centers(rows, columns, size.device) / (pyramid.ratios[:, None, level] * size))
    return torch.cat(centers, dim=1)[:, :, None] * pyramid.ratios[:, None]


def box_references(boxes: torch.Tensor, pyramid: Pyramid) -> torch.Tensor:
    """Return boxes [B, Q, 4] cxcywh in 0..1 of the image as float32 [B, Q, levels, 4] in 0..1 of each padded level."""
    return boxes.float()[:, :, None] * torch.cat([pyramid.ratios, pyramid.ratios], dim=-1)[:, None]


def first_boxes(pyramid: Pyramid) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a square box around each cell, and which of them are usable, bool [B, S].

    The boxes are logits, float32 [B, S, 4], of cxcywh in 0..1 of the image.

    Where a cell is padding, or its box too near an edge, the logits are +inf and the cell is not usable.
    """
    boxes = []
    for level, (rows, columns) in enumerate(pyramid.shapes):
        mask = pyramid.level_mask(level)
        size = torch.stack([mask[:, 0].sum(1), mask[:, :, 0].sum(1)], dim=-1)
        centers = _cell_centers(rows, columns, mask.device) / size[:, None]
        boxes.append(torch.cat([centers, torch.full_like(centers, FIRST_SIDE * 2.0**level)], dim=-1))
    boxes = torch.cat(boxes, dim=1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & pyramid.mask
    return torch.log(boxes / (1 - boxes)).masked_fill(~usable.unsqueeze(-1), float("inf")), usable


def text_logits(hidden_states: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
    """Return float32 [B, Q, K], -inf where a text is not valid.

    hidden_states [B, Q, D], text [B, K, D], text_mask bool [B, K].
    """
    logits = hidden_states.float() @ text.float().transpose(1, 2)
    return logits.masked_fill(~text_mask[:, None], float("-inf"))


@dataclass(frozen=True)
class Proposals:
    """The Q cells that answer best to any text, best first.

    index [B, Q] of cells; logits [B, Q, K] and boxes [B, Q, 4] cxcywh, float32.
    """

    index: torch.Tensor
    logits: torch.Tensor
    boxes: torch.Tensor


def propose(
    vision: torch.Tensor,
    pyramid: Pyramid,
    text: torch.Tensor,
    text_mask: torch.Tensor,
    num_queries: int,
    *,
    output: nn.Module,
    norm: nn.Module,
    bbox_embed: MLP,
) -> Proposals:
    """Choose `num_queries` cells and refine the boxes around them.

    vision [B, S, D], text [B, K, D], text_mask bool [B, K]; `output` (linear) and `norm` make what is compared with
    the text, `bbox_embed` the boxes.
    """
    first, usable = first_boxes(pyramid)
    cells = norm(output(vision.masked_fill(~usable.unsqueeze(-1), 0)))
    logits = text_logits(cells, text, text_mask)
    index = logits.amax(-1).topk(num_queries, dim=1).indices

    def chosen(rows: torch.Tensor) -> torch.Tensor:
        return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))

    boxes = (bbox_embed(chosen(cells)).float() + chosen(first)).sigmoid()
    return Proposals(index, chosen(logits), boxes)
