"""Which of all that a decoder finds is kept: the best, enough of each name, one of several boxes around the same thing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..detections.results import Detection, in_order

THINGS = 100
CANDIDATES = 1000  # so many of the best are looked at where some of them may have to go


@dataclass(frozen=True)
class Limits:
    """At most `count` things, `per_name` of one name, of scores from `threshold` on.

    `overlap`: of boxes whose intersection is more than this part of their union only the best stays (None: all stay), of one name or,
    with `across_names`, of any.
    """

    count: int = THINGS
    threshold: float = 0.0
    per_name: int | None = None
    overlap: float | None = None
    across_names: bool = False

    @property
    def candidates(self) -> int:
        return self.count if self.per_name is None and self.overlap is None else max(self.count, CANDIDATES)


def select(found: Detection, limits: Limits) -> torch.Tensor:
    """-> the kept things' index int64 [N], in the order of results. Upstream suppresses nothing: published scores are those of no limits."""
    index = in_order(found.scores, found.boxes)
    index = index[found.scores[index] >= limits.threshold]
    if limits.overlap is not None:
        index = index[
            unrivalled(found.boxes[index], None if limits.across_names else found.labels[index], limits.overlap)
        ]
    if limits.per_name is not None:
        index = index[_rank_in_name(found.labels[index]) < limits.per_name]
    return index[: limits.count]


def unrivalled(boxes: torch.Tensor, labels: torch.Tensor | None, overlap: float) -> torch.Tensor:
    """boxes [N, 4] x1 y1 x2 y2, best first -> bool [N]: False where a better one that stays overlaps it more (labels: and has its label)."""
    rivals = overlaps(boxes, boxes) > overlap
    if labels is not None:
        rivals &= labels[:, None] == labels[None]
    stays = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for row in range(len(boxes)):
        if stays[row]:
            stays[row + 1 :] &= ~rivals[row, row + 1 :]
    return stays


def overlaps(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """[N, 4] and [M, 4] x1 y1 x2 y2 -> intersection over union [N, M]; boxes without an area overlap nothing."""
    low, high = (
        torch.maximum(boxes[:, None, :2], others[None, :, :2]),
        torch.minimum(boxes[:, None, 2:], others[None, :, 2:]),
    )
    common = (high - low).clamp(min=0).prod(-1)
    area, other_area = ((corners[:, 2:] - corners[:, :2]).clamp(min=0).prod(-1) for corners in (boxes, others))
    return common / (area[:, None] + other_area[None] - common).clamp(min=torch.finfo(torch.float32).tiny)


def _rank_in_name(labels: torch.Tensor) -> torch.Tensor:
    """How many of the same label stand before each, int64 [N]."""
    same = labels[:, None] == labels[None]
    return same.tril(-1).sum(1)
