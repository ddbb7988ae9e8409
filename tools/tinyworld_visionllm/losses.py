"""What the decoders are trained to lose: matching, then focal, box, mask and keypoint losses. Plain functions of
tensors.

Boxes are cxcywh in 0..1. Every loss is a sum over objects; the caller divides by how many there are. Sources: DETR
(matching, GIoU), Deformable DETR (focal classification), MaskFormer (dice).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

CLASS_WEIGHT, BOX_WEIGHT, GIOU_WEIGHT, KEYPOINT_WEIGHT = 2.0, 5.0, 2.0, 10.0
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """cxcywh -> xyxy."""
    return torch.cat((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), dim=-1)


def generalized_iou(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Boxes [..., 4] cxcywh, shapes that broadcast -> [...], 1 where they are equal, down to -1."""
    one, other = corners(one), corners(other)
    overlap = (
        (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2]))
        .clamp(min=0)
        .prod(dim=-1)
    )
    hull = (torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])).prod(dim=-1)
    union = (one[..., 2:] - one[..., :2]).prod(dim=-1) + (other[..., 2:] - other[..., :2]).prod(dim=-1) - overlap
    return overlap / union.clamp(min=1e-7) - (hull - union) / hull.clamp(min=1e-7)


def focal(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sigmoid focal loss per element; `targets` 0 or 1. Logits of -inf (absent names) lose nothing."""
    logits = logits.clamp(min=-30)
    missed = torch.where(targets > 0, 1 - logits.sigmoid(), logits.sigmoid())
    alpha = torch.where(targets > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return alpha * missed**FOCAL_GAMMA * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


@torch.no_grad()
def match(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    objects: torch.Tensor,
    present: torch.Tensor,
    times: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The cheapest one-to-one pairs of each picture's queries and objects.

    logits [B, Q, K], boxes [B, Q, 4], labels [B, N, K] (1: the name fits the object), objects [B, N, 4], present bool
    [B, N] (False: padding) -> per pair its picture, its query, its object. With `times` above 1 each object gets so
    many queries.
    """
    # The cost of a name that fits: the focal loss of a hit less that of a miss; the mean over the object's names.
    cost_of_names = focal(logits, torch.ones_like(logits)) - focal(logits, torch.zeros_like(logits))
    cost_of_names = cost_of_names @ (labels / labels.sum(dim=2, keepdim=True).clamp(min=1)).mT
    cost = (
        CLASS_WEIGHT * cost_of_names
        + BOX_WEIGHT * torch.cdist(boxes, objects, p=1)
        - GIOU_WEIGHT * generalized_iou(boxes[:, :, None], objects[:, None])
    ).numpy()
    pictures, queries, columns = [], [], []
    for picture, count in enumerate(present.sum(dim=1).tolist()):  # padding is at the end
        rows, pairs = linear_sum_assignment(np.tile(cost[picture, :, :count], times))
        pictures += [picture] * len(rows)
        queries += rows.tolist()
        columns += (pairs % max(count, 1)).tolist()
    return (
        torch.tensor(pictures, dtype=torch.long),
        torch.tensor(queries, dtype=torch.long),
        torch.tensor(columns, dtype=torch.long),
    )


def detection(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    objects: torch.Tensor,
    pairs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Focal, L1 and GIoU losses: of all queries' logits, of the matched queries' boxes. Arguments as `match`'s, `pairs`
    is its result.
    """
    pictures, queries, columns = pairs
    names = torch.zeros_like(logits).index_put((pictures, queries), labels[pictures, columns])
    found, there = boxes[pictures, queries], objects[pictures, columns]
    return (
        CLASS_WEIGHT * focal(logits, names).sum()
        + BOX_WEIGHT * (found - there).abs().sum()
        + GIOU_WEIGHT * (1 - generalized_iou(found, there)).sum()
    )


def masks(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and dice of mask logits [N, h, w] against masks [N, H, W] (0 or 1): compared at the masks' own
    size.
    """
    logits = F.interpolate(logits[:, None], targets.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    targets = targets.to(logits)
    shares = logits.sigmoid().flatten(1)
    flat = targets.flatten(1)
    dice = 1 - (2 * (shares * flat).sum(dim=1) + 1) / (shares.sum(dim=1) + flat.sum(dim=1) + 1)
    # Background outweighs a small shape: each half counts as much as the other.
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(1)
    balanced = (entropy * flat).sum(dim=1) / flat.sum(dim=1).clamp(min=1) + (entropy * (1 - flat)).sum(dim=1) / (
        1 - flat
    ).sum(dim=1).clamp(min=1)
    return (5 * dice + 2 * balanced).sum()


def keypoints(found: torch.Tensor, wanted: torch.Tensor, objects: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Distance of keypoints [N, K, 2] from the true ones, in parts of the object's longer side; `valid` [N, K],
    `objects` [N, 4] cxcywh.
    """
    scale = objects[:, 2:].amax(dim=1).clamp(min=0.05)[:, None, None]
    distance = ((found - wanted).abs() / scale).sum(dim=-1)
    return KEYPOINT_WEIGHT * 0.1 * (distance * valid).sum()
