"""From the decoders' numbers to scores, labels, boxes in pixels, masks and keypoints.

Source: upstream's eval_det, eval_visual_prompt, eval_semseg and eval_pose. Nothing is suppressed and nothing thresholded:
one query may appear with several labels. Sizes are (height, width); "shown" is the decoder's picture without its padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

AT_ONCE = 2**26  # numbers of a mask batch that may exist together: 256 MB


class Found(NamedTuple):
    """Best first, float32 and int64 [N]: the label is the name's column, the query its row in boxes, masks and keypoints."""

    scores: torch.Tensor
    labels: torch.Tensor
    queries: torch.Tensor


def best(logits: torch.Tensor, count: int) -> Found:
    """logits [Q, K] -> the `count` best of all Q * K pairs (all, where there are fewer); pairs of a masked name (-inf) are left out.

    COCO takes 100, CrowdHuman 500, one thing (grounding, salient objects) 1.
    """
    scores = logits.float().sigmoid().flatten()
    scores, index = scores.topk(min(count, scores.numel()))
    scores, index = scores[scores > 0], index[scores > 0]
    return Found(scores, index % logits.shape[1], index // logits.shape[1])


def best_per_prompt(logits: torch.Tensor, count: int = 300) -> Found:
    """logits [Q, K] of K regions -> the best query of each region, in the regions' order.

    A region with no pair among the `count` best has score 0 (as upstream says) and its own best query.
    """
    found = best(logits, count)
    queries = logits.argmax(0)
    labels = torch.arange(logits.shape[1], device=logits.device)
    return Found(logits.float().sigmoid().amax(0) * torch.isin(labels, found.labels), labels, queries)


def boxes_in_pixels(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """boxes [..., 4] cx cy w h in 0..1 -> x1 y1 x2 y2 in pixels, float32; they may reach over the picture's edges."""
    centre, extent = boxes.float().split(2, -1)
    scale = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32, device=boxes.device)
    return torch.cat((centre - 0.5 * extent, centre + 0.5 * extent), -1) * scale


def keypoints_in_pixels(keypoints: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """keypoints [..., K, 2] in 0..1 -> [..., K, 3]: x and y in pixels, and a visibility that is always 1, float32."""
    scaled = keypoints.float() * torch.tensor([size[1], size[0]], dtype=torch.float32, device=keypoints.device)
    return torch.cat((scaled, torch.ones_like(scaled[..., :1])), -1)


def instance_masks(logits: torch.Tensor, shown: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """logits [N, h, w] of a padded canvas at a quarter of its size -> bool [N, height, width] of the picture."""
    masks = [whole.sigmoid() > 0.5 for whole in _enlarged(logits, shown, size)]
    return torch.cat(masks) if masks else logits.new_zeros(0, *size, dtype=torch.bool)


def semantic_map(
    logits: torch.Tensor, masks: torch.Tensor, shown: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """logits [Q, K] and mask logits [Q, h, w] of all queries -> int64 [height, width]: each pixel's name, none is left without.

    Upstream enlarges every query's mask and then mixes them per name; both steps are linear, so here the K mixtures are enlarged instead.
    """
    mixed = torch.einsum("qk,qhw->khw", logits.float().sigmoid(), masks.float().sigmoid())
    names = highest = None
    first = 0
    for whole in _enlarged(mixed, shown, size):
        score, name = whole.max(0)
        names = name if highest is None else torch.where(score > highest, name + first, names)
        highest = score if highest is None else torch.maximum(highest, score)
        first += len(whole)
    return names


def _enlarged(masks: torch.Tensor, shown: tuple[int, int], size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """Few masks at a time, float32: four times as large, without the padding, at the picture's size."""
    if not len(masks):
        return
    largest = max(size[0] * size[1], 16 * masks.shape[-2] * masks.shape[-1])
    for few in masks.float().split(max(1, AT_ONCE // largest)) if len(masks) else ():
        canvas = F.interpolate(few[None], scale_factor=4, mode="bilinear", align_corners=False)[
            ..., : shown[0], : shown[1]
        ]
        yield F.interpolate(canvas, size=size, mode="bilinear", align_corners=False)[0]
