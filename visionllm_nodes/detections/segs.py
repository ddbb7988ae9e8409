"""SEGS of the Impact Pack, for its Detailer nodes: ((height, width), [SEG, ...]) of one image."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence

import torch

from ...mulan.boundary.interrupts import interruptible
from ...mulan.boundary.limits import MAX_MASK_PIXELS
from .bounding_boxes import box_score, pixel_bounds

# Readers take the fields by these names: a crop of the IMAGE, a float32 array, a float, [x1, y1, x2, y2] of the crop
# and of the object, a string.
SEG = namedtuple(
    "SEG",
    ("cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label", "control_net_wrapper"),
    defaults=(None,),
)


def to_segs(
    image: torch.Tensor, boxes: Sequence[dict], masks: torch.Tensor | None = None, crop_factor: float = 3.0
) -> tuple:
    """Return the SEGS of one image [H, W, C].

    masks: [N, H, W] of the boxes, which are filled without them. The crop is `crop_factor` times the box, within the
    image. A box outside the image is left out. Raises ValueError where the crops have too many pixels.
    """
    height, width = image.shape[:2]
    places = []
    for index, box in enumerate(boxes):
        pixels = pixel_bounds(box, height, width)
        if pixels is not None:
            x1, y1, x2, y2 = pixels
            places.append((index, pixels, _stretch(x1, x2, crop_factor, width), _stretch(y1, y2, crop_factor, height)))
    made = sum((right - left) * (bottom - top) for _, _, (left, right), (top, bottom) in places)
    if made > MAX_MASK_PIXELS:
        raise ValueError(
            f"the masks of {len(places)} crops would have {made} pixels, and at most {MAX_MASK_PIXELS} are made for an "
            "image. Use fewer boxes, or lower crop_factor"
        )
    segs = []
    for index, (x1, y1, x2, y2), (left, right), (top, bottom) in interruptible(places):
        if masks is None:
            mask = torch.zeros(bottom - top, right - left)
            mask[y1 - top : y2 - top, x1 - left : x2 - left] = 1
        else:
            mask = masks[index, top:bottom, left:right]
        segs.append(
            SEG(
                image[None, top:bottom, left:right],
                mask.float().cpu().numpy().copy(),
                box_score(boxes[index]),
                [left, top, right, bottom],
                [x1, y1, x2, y2],
                boxes[index].get("label", ""),
            )
        )
    return (height, width), segs


def _stretch(first: int, last: int, factor: float, limit: int) -> tuple[int, int]:
    """Return a side `factor` times as long around the same center.

    It is moved, and at last cut, to lie in 0..limit.
    """
    length = min(limit, max(1, round((last - first) * max(1.0, factor))))
    start = min(max(0, round((first + last - length) / 2)), limit - length)
    return start, start + length
