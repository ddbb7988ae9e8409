"""From the backbone's maps to one flat sequence of cells of several levels, and from that sequence to the first boxes.

Source: Deformable DETR (Zhu et al. 2021), sections 4.1 and 4.2 (two-stage), as Grounding DINO and UniPose use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .layers import LAYER_NORM_EPS, MLP, picture_positions

GROUPS = 32  # of GroupNorm; must divide the width
FIRST_SIDE = 0.05  # side of a proposal of the finest level before refinement, doubled with each level


@dataclass(frozen=True)
class Pyramid:
    """The levels one after the other, S cells in all, rows first.

    features, positions [B, S, D]; mask bool [B, S] (True: picture); shapes (height, width) per level;
    ratios float32 [B, levels, 2]: the share (width, height) of each padded level that is picture.
    """

    features: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    shapes: tuple[tuple[int, int], ...]
    ratios: torch.Tensor

    def level_mask(self, level: int):
        """bool [B, height, width]."""
        return self.mask.split([rows * columns for rows, columns in self.shapes], dim=1)[level].unflatten(
            1, self.shapes[level]
        )


class LevelProjection(nn.Module):
    """Weights: `conv`, `norm`."""

    def __init__(self, channels: int, width: int, halve: bool, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        window = dict(kernel_size=3, stride=2, padding=1) if halve else dict(kernel_size=1)
        self.conv = operations.Conv2d(channels, width, **window, **kw)
        self.norm = operations.GroupNorm(GROUPS, width, **kw)

    def forward(self, x):
        return self.norm(self.conv(x))


class PyramidBuilder(nn.Module):
    """One level per backbone map, and one more of half the last one's size. Weights: `projections.{level}`, `level_embedding` [levels, D]."""

    def __init__(self, channels: Sequence[int], width: int, temperature: float, *, operations, dtype=None, device=None):
        super().__init__()
        self.temperature = temperature
        planned = [(count, False) for count in channels] + [(channels[-1], True)]
        self.projections = nn.ModuleList(
            LevelProjection(count, width, halve, operations=operations, dtype=dtype, device=device)
            for count, halve in planned
        )
        self.level_embedding = nn.Parameter(torch.empty(len(planned), width, dtype=dtype, device=device))

    def forward(self, maps: Sequence[torch.Tensor], pixel_mask) -> Pyramid:
        """maps [B, channels, height, width] per level, pixel_mask bool [B, H, W] (True: picture)."""
        levels = [project(source) for project, source in zip(self.projections, [*maps, maps[-1]], strict=True)]
        masks = [F.interpolate(pixel_mask[None].float(), size=level.shape[-2:])[0] > 0.5 for level in levels]
        positions = [
            picture_positions(mask, level.shape[1], self.temperature).to(level) + embedding
            for mask, level, embedding in zip(masks, levels, self.level_embedding.to(levels[0]), strict=True)
        ]
        return Pyramid(
            features=torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1),
            positions=torch.cat(positions, dim=1),
            mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            shapes=tuple(tuple(level.shape[-2:]) for level in levels),
            ratios=torch.stack(
                [torch.stack([mask[:, 0].float().mean(1), mask[:, :, 0].float().mean(1)], dim=-1) for mask in masks],
                dim=1,
            ),
        )


def _centres(rows: int, columns: int, device):
    """float32 [rows * columns, 2]: x, y of each cell's centre, in cells."""
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float32, device=device) + 0.5,
        torch.arange(columns, dtype=torch.float32, device=device) + 0.5,
        indexing="ij",
    )
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def cell_references(pyramid: Pyramid):
    """float32 [B, S, levels, 2]: x, y of each cell's own centre, in 0..1 of each padded level."""
    of_picture = []
    for level, (rows, columns) in enumerate(pyramid.shapes):
        size = pyramid.ratios.new_tensor([columns, rows])
        of_picture.append(_centres(rows, columns, size.device) / (pyramid.ratios[:, None, level] * size))
    return torch.cat(of_picture, dim=1)[:, :, None] * pyramid.ratios[:, None]


def box_references(boxes, pyramid: Pyramid):
    """boxes [B, Q, 4] cxcywh in 0..1 of the picture -> float32 [B, Q, levels, 4] in 0..1 of each padded level."""
    return boxes.float()[:, :, None] * torch.cat([pyramid.ratios, pyramid.ratios], dim=-1)[:, None]


def first_boxes(pyramid: Pyramid):
    """A square box around each cell -> (logits float32 [B, S, 4] of cxcywh in 0..1 of the picture, usable bool [B, S]).

    Where a cell is padding, or its box too near an edge, the logits are +inf and the cell is not usable.
    """
    boxes = []
    for level, (rows, columns) in enumerate(pyramid.shapes):
        mask = pyramid.level_mask(level)
        size = torch.stack([mask[:, 0].sum(1), mask[:, :, 0].sum(1)], dim=-1)
        centres = _centres(rows, columns, mask.device) / size[:, None]
        boxes.append(torch.cat([centres, torch.full_like(centres, FIRST_SIDE * 2.0**level)], dim=-1))
    boxes = torch.cat(boxes, dim=1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & pyramid.mask
    return torch.log(boxes / (1 - boxes)).masked_fill(~usable.unsqueeze(-1), float("inf")), usable


def text_logits(states, text, text_mask):
    """states [B, Q, D], text [B, K, D], text_mask bool [B, K] -> float32 [B, Q, K], -inf where a text is not valid."""
    return (states.float() @ text.float().transpose(1, 2)).masked_fill(~text_mask[:, None], float("-inf"))


@dataclass(frozen=True)
class Proposals:
    """The Q cells that answer best to any text, best first: index [B, Q] of cells, logits [B, Q, K], boxes [B, Q, 4] cxcywh, float32."""

    index: torch.Tensor
    logits: torch.Tensor
    boxes: torch.Tensor


class ProposalHead(nn.Module):
    """Weights: `project`, `norm`, `box` (MLP of three layers)."""

    def __init__(self, width: int, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.project = operations.Linear(width, width, **kw)
        self.norm = operations.LayerNorm(width, eps=LAYER_NORM_EPS, **kw)
        self.box = MLP((width, width, width, 4), operations=operations, **kw)

    def forward(self, vision, pyramid: Pyramid, text, text_mask, count: int) -> Proposals:
        """vision [B, S, D], text [B, K, D], text_mask bool [B, K]; `count` proposals (Q) are chosen."""
        first, usable = first_boxes(pyramid)
        cells = self.norm(self.project(vision.masked_fill(~usable.unsqueeze(-1), 0)))
        logits = text_logits(cells, text, text_mask)
        index = logits.amax(-1).topk(count, dim=1).indices

        def chosen(rows):
            return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))

        boxes = (self.box(chosen(cells)).float() + chosen(first)).sigmoid()
        return Proposals(index, chosen(logits), boxes)
