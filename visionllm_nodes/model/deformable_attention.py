"""Multi-scale deformable attention: each query looks at a few points of each level of a pyramid.

Source: Deformable DETR (Zhu et al. 2021), section 4.1; upstream's file ops/functions/ms_deform_attn_func.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

PIECE = 1024  # queries at a time on a processor: their samples stay in its cache, which halves the time


def sample_pyramid(value, shapes: Sequence[tuple[int, int]], points, weights):
    """Weighted sum of the values at the points, bilinear, zero outside the pyramid's levels; computed in float32.

    value [B, S, heads, C] (levels one after the other, rows first), shapes (height, width) per level,
    points [B, Q, heads, levels, P, 2] as x, y where 0..1 is the whole padded level, weights [B, Q, heads, levels, P]
    -> float32 [B, Q, heads * C].
    """
    batch, _, heads, width = value.shape
    maps = [
        level.permute(0, 2, 3, 1).reshape(batch * heads, width, *shape)
        for level, shape in zip(
            value.float().split([rows * columns for rows, columns in shapes], dim=1), shapes, strict=True
        )
    ]
    # a backward pass fills a gradient as large as the map for each piece
    whole = torch.is_grad_enabled() or value.device.type != "cpu"
    found = []
    for at, share in zip(
        *(rows.split(rows.shape[1] if whole else PIECE, dim=1) for rows in (points, weights)), strict=True
    ):
        grids = (2 * at.float() - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # levels, B * heads, queries, P, xy
        shares = share.float().permute(3, 0, 2, 1, 4).flatten(1, 2)
        total = 0
        for level, grid, factors in zip(maps, grids, shares, strict=True):
            sampled = F.grid_sample(level, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            total = total + torch.einsum("ncqp,nqp->ncq", sampled, factors)
        found.append(total)
    return torch.cat(found, dim=2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


class DeformableAttention(nn.Module):
    """Weights: `offsets`, `weights`, `value`, `out` (upstream: sampling_offsets, attention_weights, value_proj, output_proj)."""

    def __init__(self, width: int, heads: int, levels: int, points: int, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = operations.Linear(width, heads * levels * points * 2, **kw)
        self.weights = operations.Linear(width, heads * levels * points, **kw)
        self.value = operations.Linear(width, width, **kw)
        self.out = operations.Linear(width, width, **kw)

    def forward(self, queries, references, memory, memory_mask, shapes: Sequence[tuple[int, int]]):
        """queries [B, Q, D] with their positions added, references float32 [B, Q, levels, 2 (x, y) or 4 (x, y, w, h)] in 0..1 of the padded level,
        memory [B, S, D], memory_mask bool [B, S] (True: picture) -> [B, Q, D]."""
        value = self.value(memory).masked_fill(~memory_mask.unsqueeze(-1), 0).unflatten(-1, (self.heads, -1))
        offsets = self.offsets(queries).float().unflatten(-1, (self.heads, self.levels, self.points, 2))
        weights = (
            self.weights(queries)
            .float()
            .unflatten(-1, (self.heads, -1))
            .softmax(-1)
            .unflatten(-1, (self.levels, self.points))
        )
        centres = references[:, :, None, :, None, :2]
        if references.shape[-1] == 2:  # offsets in cells of their level
            cells = torch.tensor(
                [(columns, rows) for rows, columns in shapes], dtype=torch.float32, device=offsets.device
            )
            points = centres + offsets / cells[:, None]
        else:  # offsets in halves of the box, shared out among the points
            points = centres + offsets / self.points * references[:, :, None, :, None, 2:] * 0.5
        return self.out(sample_pyramid(value, shapes, points, weights).to(queries.dtype))
