"""Which detections are kept: thresholds, non-maximum suppression, limits per name and image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchvision.ops import box_iou, nms

from ..detections.results import Detections, sort_order

MAX_DETECTIONS = 100
NEGATIVE_OVERLAP = 0.5  # IoU from which two boxes are of one object
CANDIDATES = 1000  # so many of the best are looked at where some of them may have to go


@dataclass(frozen=True)
class Limits:
    """At most `max_detections`, and `max_per_name` of one name, with scores from `threshold` on.

    iou_threshold: of boxes with a higher IoU only the best stays (None: no NMS). class_agnostic: whatever their names;
    else among those of one name. wanted: only detections of the first so many names are kept, and none of an object
    that another name fits better (None: all).
    """

    max_detections: int = MAX_DETECTIONS
    threshold: float = 0.0
    max_per_name: int | None = None
    iou_threshold: float | None = None
    class_agnostic: bool = False
    wanted: int | None = None

    @property
    def candidates(self) -> int:
        """How many of the decoder's best are needed to choose from."""
        if self.max_per_name is None and self.iou_threshold is None:
            return self.max_detections
        return max(self.max_detections, CANDIDATES)


def select(detections: Detections, limits: Limits) -> torch.Tensor:
    """Return the index of what is kept, int64 [N], in the order of results.

    Upstream suppresses nothing: published scores are those of no limits.
    """
    index = sort_order(detections.scores, detections.boxes)
    index = index[detections.scores[index] >= limits.threshold]
    if limits.iou_threshold is not None:
        labels = None if limits.class_agnostic else detections.labels[index]
        index = index[nms_mask(detections.boxes[index], labels, limits.iou_threshold)]
    if limits.wanted is not None:
        index = index[_fits_best(detections.select(index), limits.wanted)]
    if limits.max_per_name is not None:
        index = index[_rank_in_name(detections.labels[index]) < limits.max_per_name]
    return index[: limits.max_detections]


def nms_mask(boxes: torch.Tensor, labels: torch.Tensor | None, iou_threshold: float) -> torch.Tensor:
    """Return which boxes stay after NMS, bool [N]; with `labels` int64 [N] among those of one label.

    boxes: [N, 4] x1 y1 x2 y2 in pixels, best first.
    """
    ranks = -torch.arange(len(boxes), dtype=torch.float32, device=boxes.device)  # no ties: the order is given
    stays = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    # Not batched_nms: it moves labels apart by the largest coordinate, too little for boxes left of the image.
    groups = (
        [torch.arange(len(boxes))]
        if labels is None
        else [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    )
    for group in groups:
        stays[group[nms(boxes[group], ranks[group], iou_threshold)]] = True
    return stays


def _fits_best(detections: Detections, wanted: int) -> torch.Tensor:
    """Return which detections, best first, are of the first `wanted` names and not of an object that another name fits
    better, bool [N].
    """
    negative = detections.labels >= wanted
    places = torch.arange(len(detections), device=negative.device)
    covers = box_iou(detections.boxes[negative], detections.boxes) > NEGATIVE_OVERLAP
    return ~negative & ~(covers & (places[negative][:, None] < places[None])).any(0)


def _rank_in_name(labels: torch.Tensor) -> torch.Tensor:
    """Return how many of the same label stand before each, int64 [N]."""
    same = labels[:, None] == labels[None]
    return same.tril(-1).sum(1)
