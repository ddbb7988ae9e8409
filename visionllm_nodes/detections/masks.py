"""MASK [B, H, W], float32 0 or 1: masks of detections and of boxes, and boxes of masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from ...mulan.boundary.interrupts import interruptible
from ...mulan.boundary.limits import MAX_AREAS, MAX_MASK_PIXELS
from .bounding_boxes import bounding_box, pixel_bounds, to_bounding_boxes
from .results import Detections

MASK_THRESHOLD = 0.5  # a pixel belongs to a mask from this value on
NO_SIZE = 64, 64  # of an empty mask where there is no image, as LoadImage's


def too_many_pixels(count: int, height: int, width: int) -> str | None:
    """Return what is wrong where masks [count, height, width] would have more pixels than are made at once."""
    if count * height * width <= MAX_MASK_PIXELS:
        return None
    return (
        f"{count} masks of {width} x {height} pixels would have {count * height * width} pixels, and at most "
        f"{MAX_MASK_PIXELS} are made at once. Use fewer boxes or images, or smaller images"
    )


def check_mask_pixels(count: int, height: int, width: int) -> None:
    """Raise ValueError where masks [count, height, width] would have more pixels than are made at once."""
    error = too_many_pixels(count, height, width)
    if error:
        raise ValueError(error)


def fit_masks(masks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return masks [N, H, W] in the size of their image, resized without values between."""
    if tuple(masks.shape[1:]) == (height, width) or not len(masks):
        return masks.new_zeros(0, height, width) if not len(masks) else masks
    check_mask_pixels(len(masks), height, width)
    return F.interpolate(masks[:, None], size=(height, width), mode="nearest-exact")[:, 0]


def union_mask(detections: Sequence[Detections]) -> torch.Tensor:
    """Return the union of each image's masks, [B, H, W].

    Detections without masks fill their boxes. All images must have one size.
    """
    return torch.stack([_union(_masks(detection), detection.size).float() for detection in interruptible(detections)])


def object_masks(detections: Sequence[Detections]) -> torch.Tensor:
    """Return a mask for each detection, [N, H, W], in the order of the boxes of all images.

    Where there is none, a single empty mask.
    """
    masks = torch.zeros(max(1, sum(map(len, detections))), *detections[0].size)
    first = 0
    for detection in interruptible(detections):
        masks[first : first + len(detection)] = _masks(detection)
        first += len(detection)
    return masks


def boxes_to_masks(frames: Sequence[Sequence[dict]], height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill boxes -> (union [B, H, W], each [N, H, W]; a single empty one where there is no box).

    A box fills all pixels that it touches. Raises ValueError for more pixels than are made at once.
    """
    count = sum(map(len, frames))
    check_mask_pixels(len(frames) + count, height, width)
    union, each = torch.zeros(len(frames), height, width), torch.zeros(max(1, count), height, width)
    masks = iter(each)
    for whole, boxes in zip(union, frames, strict=True):
        for box in interruptible(boxes):
            _fill(next(masks), box)
            _fill(whole, box)
    return union, each


def split_masks_per_image(
    masks: torch.Tensor, frames: Sequence[Sequence[dict]], size: tuple[int, int] | None = None
) -> list[torch.Tensor]:
    """Split masks [N, H, W] of the boxes of all images, in their order, by image.

    size: (height, width) of the images, which masks of another size are resized to. Raises ValueError where there are
    more or fewer masks than boxes; a single mask without boxes is the empty one that stands for none.
    """
    count = sum(map(len, frames))
    if len(masks) != count and not (count == 0 and len(masks) == 1):
        raise ValueError(
            f"there are {len(masks)} masks for {count} boxes: connect one mask per box, in the order of the boxes"
        )
    fitted = masks[:count] if size is None else fit_masks(masks[:count], *size)
    return list(fitted.split([len(boxes) for boxes in frames]))


def masks_to_boxes(masks: torch.Tensor, apart: bool, smallest: int = 1) -> list[list[dict]]:
    """Return the boxes of each mask of [B, H, W], with "score" 1.

    At most one per mask, or with `apart` one for each area that touches no other, the largest first. Areas of fewer
    than `smallest` pixels are left out. Raises ValueError where more are left than become boxes.
    """
    boxes_per_mask, total = [], 0
    for mask in interruptible(masks):
        areas = mask.cpu().numpy() >= MASK_THRESHOLD
        height, width = areas.shape
        labels, count = areas.astype(np.int32), 1
        if apart:
            labels, count = cast(tuple[np.ndarray, int], ndimage.label(areas, np.ones((3, 3))))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        kept = np.flatnonzero(sizes >= max(1, smallest))
        total += len(kept)
        if total > MAX_AREAS:
            raise ValueError(
                f"mask: it has at least {total} separate areas of {smallest} pixels or more, and at most {MAX_AREAS} "
                "become boxes. Raise min_area, or blur the mask"
            )
        kept = kept[np.argsort(-sizes[kept], kind="stable")]
        place_of = np.zeros(count + 1, np.int32)
        place_of[kept + 1] = np.arange(1, len(kept) + 1)
        boxes_per_mask.append(
            [
                bounding_box((x.start, y.start, x.stop, y.stop), (height, width), "", 1.0)
                for y, x in ndimage.find_objects(place_of[labels], len(kept))
            ]
        )
    for boxes in boxes_per_mask:
        for box in boxes:
            del box["label"]
    return boxes_per_mask


def _masks(detection: Detections) -> torch.Tensor:
    if detection.masks is None:
        return _filled(to_bounding_boxes([detection])[0], *detection.size)
    return detection.masks


def _filled(boxes: Sequence[dict], height: int, width: int) -> torch.Tensor:
    masks = torch.zeros(len(boxes), height, width)
    for mask, box in zip(masks, boxes, strict=True):
        _fill(mask, box)
    return masks


def _fill(mask: torch.Tensor, box: dict) -> None:
    pixels = pixel_bounds(box, *mask.shape)
    if pixels:
        x1, y1, x2, y2 = pixels
        mask[y1:y2, x1:x2] = 1


def _union(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return masks.amax(0) if len(masks) else torch.zeros(size)
