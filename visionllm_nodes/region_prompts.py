"""Regions that a user marks with masks, boxes or points: as the model takes them, and as they lie in the image."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torchvision.ops import masks_to_boxes

from ..nodes.common import with_field_name
from .detections.bounding_boxes import box_corners, boxes_per_image
from .detections.masks import MASK_THRESHOLD
from .detections.results import Detections
from .model import regions


@dataclass(frozen=True)
class Regions:
    """R regions of an image of `size` (height, width).

    marks: bool [R, S, S], at the vision tower's size. What they cover in the image: boxes float32 [R, 4] x1 y1 x2 y2 in
    pixels, masks bool [R, height, width].
    """

    size: tuple[int, int]
    marks: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor

    def __len__(self) -> int:
        return len(self.marks)

    def to_detections(self, labels: Sequence[str]) -> Detections:
        """Return the regions themselves as detections, each with its label."""
        return Detections(
            self.size, tuple(labels), torch.arange(len(self)), torch.ones(len(self)), self.boxes, self.masks
        )


def regions_per_image(
    frames: int, size: tuple[int, int], tower: int, mask: torch.Tensor | None = None, bboxes=None, points: str = ""
) -> list[Regions]:
    """Return the regions of each image: first its masks, then its boxes, then the points.

    mask [M, h, w]: M regions of a single image; with several images one region each, or one for all. `bboxes`: any
    BOUNDING_BOX. Each point is a region. Raise ValueError that begins with the field.
    """
    coordinates = parse_points(points)
    if bboxes is None:
        boxes = [[] for _ in range(frames)]
    else:
        boxes = with_field_name("bboxes", boxes_per_image, bboxes, frames)
    return [
        _regions(size, tower, _masks_of_image(mask, index, frames), boxes[index], coordinates)
        for index in range(frames)
    ]


def parse_points(text: str) -> list[tuple[float, float]]:
    """Return x, y of [{"x": 12, "y": 34}, ...]; an empty text has none. Raise ValueError that begins with the field."""
    if not text.strip():
        return []
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'points: not valid JSON ({error}). Enter [{{"x": 12, "y": 34}}], in pixels.') from error
    read = [read] if isinstance(read, dict) else read
    if not isinstance(read, list):
        raise ValueError(f'points: expected a list such as [{{"x": 12, "y": 34}}], not a {type(read).__name__}')
    points = []
    for number, point in enumerate(read, 1):
        x, y = (point.get("x"), point.get("y")) if isinstance(point, dict) else (None, None)
        if not (_is_number(x) and _is_number(y)):
            raise ValueError(
                f'points: point {number} must have numbers for "x" and "y", but is {json.dumps(point)[:80]}'
            )
        points.append((float(x), float(y)))
    return points


def _is_number(value) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _masks_of_image(mask: torch.Tensor | None, index: int, frames: int) -> torch.Tensor | None:
    if mask is None or frames == 1:
        return mask
    if len(mask) not in (1, frames):
        raise ValueError(
            f"mask: got {len(mask)} masks for {frames} images. Connect one mask for all images, or one per image"
        )
    return mask[index if len(mask) > 1 else 0][None]


def _regions(
    size: tuple[int, int],
    tower: int,
    masks: torch.Tensor | None,
    boxes: Sequence[dict],
    points: Sequence[tuple[float, float]],
) -> Regions:
    height, width = size
    parts = []
    if masks is not None:
        masks = masks.cpu() >= MASK_THRESHOLD
        marks = with_field_name("mask", regions.masks_from_masks, masks, tower)
        whole = F.interpolate(masks[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0
        for row, mask in enumerate(whole):
            if not mask.any():  # smaller than a pixel of the image
                whole[row] = F.adaptive_max_pool2d(masks[row][None].float(), size)[0] > 0
        parts.append((marks, _boxes_of_masks(whole), whole))
    for field, corners in (
        ("bboxes", [box_corners(box) for box in boxes]),
        ("points", [(x, y, x, y) for x, y in points]),
    ):
        if corners:
            corners = torch.tensor(corners, dtype=torch.float32)
            marks = with_field_name(field, regions.masks_from_boxes, corners, height, width, tower)
            parts.append((marks, corners, _filled(corners, height, width)))
    if not parts:
        return Regions(
            size,
            torch.zeros(0, tower, tower, dtype=torch.bool),
            torch.zeros(0, 4),
            torch.zeros(0, height, width, dtype=torch.bool),
        )
    marks, covered_boxes, covered_masks = (torch.cat(part) for part in zip(*parts, strict=True))
    return Regions(size, marks[:, 0], covered_boxes, covered_masks)


def _boxes_of_masks(masks: torch.Tensor) -> torch.Tensor:
    """Return the boxes float32 [N, 4] x1 y1 x2 y2 around masks [N, height, width], of which none is empty."""
    boxes = masks_to_boxes(masks)
    boxes[:, 2:] += 1
    return boxes


def _filled(corners: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return bool [N, height, width]; like the model's marks, boxes include the last row and column."""
    inside = corners.clamp(min=0).minimum(torch.tensor([width - 1, height - 1] * 2)).long()
    x1, y1, x2, y2 = inside[:, :, None].unbind(1)
    rows, columns = torch.arange(height), torch.arange(width)
    return ((rows >= y1) & (rows <= y2))[:, :, None] & ((columns >= x1) & (columns <= x2))[:, None, :]
