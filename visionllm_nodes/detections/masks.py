"""MASK [B, H, W], float32 0 or 1: of detections, of boxes, and boxes of masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from .bounding_boxes import bounding_box, to_bounding_boxes, whole_pixels
from .results import Detection

SET = 0.5  # a mask's pixel counts from here on


def union_mask(detections: Sequence[Detection]) -> torch.Tensor:
    """-> [B, H, W]: of each picture whatever belongs to any of its things. Things without masks fill their boxes. All pictures have one size."""
    return torch.stack([_union(_masks(detection), detection.size) for detection in detections])


def object_masks(detections: Sequence[Detection]) -> torch.Tensor:
    """-> [N, H, W]: a mask for each thing, in the order of the boxes of all pictures; a single empty one where there is nothing."""
    return _at_least_one(torch.cat([_masks(detection) for detection in detections]), detections[0].size)


def boxes_to_masks(frames: Sequence[Sequence[dict]], height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Filled boxes: -> (union [B, H, W], each [N, H, W]; a single empty one where there is no box). A box fills all pixels it touches."""
    masks = [_filled(boxes, height, width) for boxes in frames]
    return torch.stack([_union(mask, (height, width)) for mask in masks]), _at_least_one(
        torch.cat(masks), (height, width)
    )


def for_boxes(masks: torch.Tensor, frames: Sequence[Sequence[dict]]) -> list[torch.Tensor]:
    """`masks` [N, H, W] of the boxes of all pictures, in their order -> those of each picture. ValueError where their numbers do not agree."""
    count = sum(map(len, frames))
    if len(masks) != count and not (count == 0 and len(masks) == 1):
        raise ValueError(
            f"there are {len(masks)} masks for {count} boxes: there must be one mask for each box, in the boxes' order"
        )
    return list(masks[:count].split([len(boxes) for boxes in frames]))


def masks_to_boxes(masks: torch.Tensor, apart: bool, smallest: int = 1) -> list[list[dict]]:
    """[B, H, W] -> per mask its boxes, at most one, or with `apart` one for each area that touches no other, the largest first.

    Areas of fewer than `smallest` pixels are left out. A box has the "score" 1.
    """
    found = []
    for mask in masks:
        areas = mask.cpu().numpy() >= SET
        numbers, count = ndimage.label(areas, np.ones((3, 3))) if apart else (areas.astype(np.int32), 1)
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
        places = ndimage.find_objects(numbers, count)
        kept = [
            number
            for number in sorted(range(count), key=lambda number: (-sizes[number], number))
            if sizes[number] >= max(1, smallest)
        ]
        found.append(
            [
                bounding_box((x.start, y.start, x.stop, y.stop), areas.shape, "", 1.0)
                for y, x in (places[number] for number in kept)
            ]
        )
    for boxes in found:
        for box in boxes:
            del box["label"]
    return found


def _masks(detection: Detection) -> torch.Tensor:
    if detection.masks is None:
        return _filled(to_bounding_boxes([detection])[0], *detection.size)
    return detection.masks.float()


def _filled(boxes: Sequence[dict], height: int, width: int) -> torch.Tensor:
    masks = torch.zeros(len(boxes), height, width)
    for mask, box in zip(masks, boxes):
        pixels = whole_pixels(box, height, width)
        if pixels:
            x1, y1, x2, y2 = pixels
            mask[y1:y2, x1:x2] = 1
    return masks


def _union(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return masks.amax(0) if len(masks) else torch.zeros(size)


def _at_least_one(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return masks if len(masks) else torch.zeros(1, *size)
