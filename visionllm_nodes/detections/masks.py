"""MASK [B, H, W], float32 0 or 1: masks of detections and of boxes, and boxes of masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from scipy import ndimage

from .bounding_boxes import bounding_box, pixel_bounds, to_bounding_boxes
from .results import Detections

MASK_THRESHOLD = 0.5  # a pixel belongs to a mask from this value on


def union_mask(detections: Sequence[Detections]) -> torch.Tensor:
    """Return the union of each image's masks, [B, H, W].

    Detections without masks fill their boxes. All images must have one size.
    """
    return torch.stack([_union(_masks(detection), detection.size) for detection in detections])


def object_masks(detections: Sequence[Detections]) -> torch.Tensor:
    """Return a mask for each detection, [N, H, W], in the order of the boxes of all images.

    Where there is none, a single empty mask.
    """
    return _at_least_one(torch.cat([_masks(detection) for detection in detections]), detections[0].size)


def boxes_to_masks(frames: Sequence[Sequence[dict]], height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill boxes -> (union [B, H, W], each [N, H, W]; a single empty one where there is no box).

    A box fills all pixels that it touches.
    """
    masks = [_filled(boxes, height, width) for boxes in frames]
    return torch.stack([_union(mask, (height, width)) for mask in masks]), _at_least_one(
        torch.cat(masks), (height, width)
    )


def split_masks_per_image(masks: torch.Tensor, frames: Sequence[Sequence[dict]]) -> list[torch.Tensor]:
    """Split masks [N, H, W] of the boxes of all images, in their order, by image.

    Raises ValueError where there are more or fewer masks than boxes.
    """
    count = sum(map(len, frames))
    if len(masks) != count and not (count == 0 and len(masks) == 1):
        raise ValueError(
            f"there are {len(masks)} masks for {count} boxes: connect one mask per box, in the order of the boxes"
        )
    return list(masks[:count].split([len(boxes) for boxes in frames]))


def masks_to_boxes(masks: torch.Tensor, apart: bool, smallest: int = 1) -> list[list[dict]]:
    """Return the boxes of each mask of [B, H, W], with "score" 1.

    At most one per mask, or with `apart` one for each area that touches no other, the largest first. Areas of fewer
    than `smallest` pixels are left out.
    """
    boxes_per_mask = []
    for mask in masks:
        areas = mask.cpu().numpy() >= MASK_THRESHOLD
        height, width = areas.shape
        labels, count = areas.astype(np.int32), 1
        if apart:
            labels, count = cast(tuple[np.ndarray, int], ndimage.label(areas, np.ones((3, 3))))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        slices = ndimage.find_objects(labels, count)
        kept = [
            index
            for index in sorted(range(count), key=lambda index: (-sizes[index], index))
            if sizes[index] >= max(1, smallest)
        ]
        boxes_per_mask.append(
            [
                bounding_box((x.start, y.start, x.stop, y.stop), (height, width), "", 1.0)
                for y, x in (slices[index] for index in kept)
            ]
        )
    for boxes in boxes_per_mask:
        for box in boxes:
            del box["label"]
    return boxes_per_mask


def _masks(detection: Detections) -> torch.Tensor:
    if detection.masks is None:
        return _filled(to_bounding_boxes([detection])[0], *detection.size)
    return detection.masks.float()


def _filled(boxes: Sequence[dict], height: int, width: int) -> torch.Tensor:
    masks = torch.zeros(len(boxes), height, width)
    for mask, box in zip(masks, boxes, strict=True):
        pixels = pixel_bounds(box, height, width)
        if pixels:
            x1, y1, x2, y2 = pixels
            mask[y1:y2, x1:x2] = 1
    return masks


def _union(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return masks.amax(0) if len(masks) else torch.zeros(size)


def _at_least_one(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return masks if len(masks) else torch.zeros(1, *size)
