"""From the decoders' outputs to scores, labels, boxes in pixels, masks and keypoints.

Source: upstream's eval_det, eval_visual_prompt, eval_semseg and eval_pose. There is no NMS and no threshold: one query
may appear with several labels. Sizes are (height, width); `content` is the size of the decoder's image without its
padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torchvision.ops import box_convert

from ...mulan.boundary.interrupts import interruptible

MAX_BATCH_ELEMENTS = 2**25  # of masks that are enlarged together: 128 MB, and as much for their thresholds
MASK_MEMORY = 2 * MAX_BATCH_ELEMENTS * torch.float32.itemsize


class TopQueries(NamedTuple):
    """Pairs of a query and a label, best first: float32 and int64 [N].

    The label is the name's column of the logits, the query its row in boxes, masks and keypoints.
    """

    scores: torch.Tensor
    labels: torch.Tensor
    queries: torch.Tensor


def top_queries(logits: torch.Tensor, count: int) -> TopQueries:
    """Return the `count` best of all Q * K pairs of logits [Q, K]; pairs of a masked name (-inf) are left out.

    COCO takes 100, CrowdHuman 500, one object (grounding, salient objects) 1.
    """
    scores = logits.float().sigmoid().flatten()
    scores, index = scores.topk(min(count, scores.numel()))
    scores, index = scores[scores > 0], index[scores > 0]
    return TopQueries(scores, index % logits.shape[1], index // logits.shape[1])


def top_per_prompt(logits: torch.Tensor, count: int = 300) -> TopQueries:
    """Return the best query of each of K regions, in their order; logits [Q, K].

    A region with no pair among the `count` best has score 0 (as upstream says) and its own best query.
    """
    best = top_queries(logits, count)
    queries = logits.argmax(0)
    labels = torch.arange(logits.shape[1], device=logits.device)
    return TopQueries(logits.float().sigmoid().amax(0) * torch.isin(labels, best.labels), labels, queries)


def boxes_in_pixels(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Convert boxes [..., 4] cx cy w h in 0..1 -> x1 y1 x2 y2 in pixels, float32.

    They may reach over the image's edges.
    """
    scale = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32, device=boxes.device)
    return box_convert(boxes.float(), "cxcywh", "xyxy") * scale


def keypoints_in_pixels(keypoints: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Convert keypoints [..., K, 2] in 0..1 -> float32 [..., K, 3].

    That is x and y in pixels, and a visibility that is always 1.
    """
    scaled = keypoints.float() * torch.tensor([size[1], size[0]], dtype=torch.float32, device=keypoints.device)
    return torch.cat((scaled, torch.ones_like(scaled[..., :1])), -1)


def instance_masks(
    logits: torch.Tensor, content: tuple[int, int], size: tuple[int, int], device: torch.device | None = None
) -> torch.Tensor:
    """Return masks of the image, bool [N, height, width], on `device` (None: the logits').

    logits: [N, h, w] of the padded canvas, at a quarter of its size. Few masks at a time have the image's size where
    the logits are.
    """
    masks = torch.empty(len(logits), *size, dtype=torch.bool, device=logits.device if device is None else device)
    first = 0
    for enlarged in _enlarge(logits, content, size):
        masks[first : first + len(enlarged)] = enlarged.sigmoid_() > 0.5
        first += len(enlarged)
    return masks


def semantic_map(
    logits: torch.Tensor, masks: torch.Tensor, content: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """Return the index of each pixel's name, int64 [height, width]; every pixel has one.

    logits: [Q, K] and mask logits [Q, h, w] of all queries. Upstream enlarges every query's mask and then mixes them
    per name; both steps are linear, so here the K mixtures are enlarged instead.
    """
    mixed = torch.einsum("qk,qhw->khw", logits.float().sigmoid(), masks.float().sigmoid())
    names = torch.zeros(size, dtype=torch.long, device=logits.device)
    highest = torch.full(size, -torch.inf, device=logits.device)
    first = 0
    for enlarged in _enlarge(mixed, content, size):
        score, name = enlarged.max(0)
        names = torch.where(score > highest, name + first, names)
        highest = torch.maximum(highest, score)
        first += len(enlarged)
    return names


def _enlarge(masks: torch.Tensor, content: tuple[int, int], size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """Enlarge few masks at a time, float32: to four times the size, without the padding, to the image's size."""
    if not len(masks):
        return
    largest = max(size[0] * size[1], 16 * masks.shape[-2] * masks.shape[-1])
    for few in interruptible(masks.split(max(1, MAX_BATCH_ELEMENTS // largest))):
        canvas = F.interpolate(few[None].float(), scale_factor=4, mode="bilinear", align_corners=False)
        canvas = canvas[..., : content[0], : content[1]]
        yield F.interpolate(canvas, size=size, mode="bilinear", align_corners=False)[0]
