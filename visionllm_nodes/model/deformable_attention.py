"""Multi-scale deformable attention: each query looks at a few points of each level of a pyramid.

Source: Deformable DETR (Zhu et al. 2021, arXiv 2010.04159), section 4.1; upstream's file
ops/functions/ms_deform_attn_func.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

CHUNK_SIZE = 1024  # queries at a time on a CPU: their samples stay in its cache, which halves the time


def sample_pyramid(
    value: torch.Tensor, shapes: Sequence[tuple[int, int]], points: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum of the values at the points, bilinear, zero outside the levels; computed in float32.

    value [B, S, heads, C] (levels one after the other, rows first), shapes (height, width) per level,
    points [B, Q, heads, levels, P, 2] as x, y where 0..1 is the whole padded level, weights [B, Q, heads, levels, P]
    -> float32 [B, Q, heads * C].
    """
    batch, _, heads, channels = value.shape
    maps = [
        level.permute(0, 2, 3, 1).reshape(batch * heads, channels, *shape)
        for level, shape in zip(
            value.float().split([rows * columns for rows, columns in shapes], dim=1), shapes, strict=True
        )
    ]
    # a backward pass fills a gradient as large as the map for each chunk
    whole = torch.is_grad_enabled() or value.device.type != "cpu"
    sums = []
    for chunk, chunk_weights in zip(
        *(rows.split(rows.shape[1] if whole else CHUNK_SIZE, dim=1) for rows in (points, weights)), strict=True
    ):
        grids = (2 * chunk.float() - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # levels, B * heads, queries, P, xy
        level_weights = chunk_weights.float().permute(3, 0, 2, 1, 4).flatten(1, 2)
        total: Any = 0
        for level, grid, factors in zip(maps, grids, level_weights, strict=True):
            sampled = F.grid_sample(level, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            total = total + (sampled * factors[:, None]).sum(-1)  # as a product it would be one of tiny matrices
        sums.append(total)
    return torch.cat(sums, dim=2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


class DeformableAttention(nn.Module):
    """Attention of queries to `num_points` points per head and level of a pyramid."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        *,
        operations: Any,
        dtype=None,
        device=None,
    ):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = operations.Linear(hidden_size, num_heads * num_levels * num_points * 2, **kw)
        self.attention_weights = operations.Linear(hidden_size, num_heads * num_levels * num_points, **kw)
        self.value_proj = operations.Linear(hidden_size, hidden_size, **kw)
        self.output_proj = operations.Linear(hidden_size, hidden_size, **kw)

    def forward(self, queries, references, memory, memory_mask, shapes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return what each query reads, [B, Q, D].

        queries [B, Q, D] with their positions added, references float32 [B, Q, levels, 2 (x, y) or 4 (x, y, w, h)] in
        0..1 of the padded level, memory [B, S, D], memory_mask bool [B, S] (True: image), shapes (height, width) per
        level.
        """
        value = self.value_proj(memory).masked_fill(~memory_mask.unsqueeze(-1), 0).unflatten(-1, (self.num_heads, -1))
        offsets = (
            self.sampling_offsets(queries).float().unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        )
        weights = (
            self.attention_weights(queries)
            .float()
            .unflatten(-1, (self.num_heads, -1))
            .softmax(-1)
            .unflatten(-1, (self.num_levels, self.num_points))
        )
        centers = references[:, :, None, :, None, :2]
        if references.shape[-1] == 2:  # offsets in cells of their level
            cells = torch.tensor(
                [(columns, rows) for rows, columns in shapes], dtype=torch.float32, device=offsets.device
            )
            points = centers + offsets / cells[:, None]
        else:  # offsets in halves of the box, shared out among the points
            points = centers + offsets / self.num_points * references[:, :, None, :, None, 2:] * 0.5
        return self.output_proj(sample_pyramid(value, shapes, points, weights).to(queries.dtype))
