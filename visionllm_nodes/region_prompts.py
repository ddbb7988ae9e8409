"""Regions that a person marks, by masks, boxes or points: as the model takes them, and as they lie in the picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .detections.bounding_boxes import box_corners, boxes_per_image
from .detections.masks import SET
from .detections.results import Detections
from .model import regions


@dataclass(frozen=True)
class Regions:
    """R regions of a picture of `size` (height, width): marks bool [R, S, S] at the vision tower's size, and what they cover: boxes float32 [R, 4]
    x1 y1 x2 y2 in pixels, masks bool [R, height, width]."""

    size: tuple[int, int]
    marks: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor

    def __len__(self) -> int:
        return len(self.marks)

    def as_found(self, labels: Sequence[str]) -> Detections:
        """The regions themselves as things, each with its label."""
        return Detections(
            self.size, tuple(labels), torch.arange(len(self)), torch.ones(len(self)), self.boxes, self.masks
        )


def regions_of_frames(
    frames: int, size: tuple[int, int], tower: int, mask: torch.Tensor | None = None, bboxes=None, points: str = ""
) -> list[Regions]:
    """The regions of each picture: first its masks, then its boxes, then the points. Raises ValueError that begins with the field.

    mask [M, h, w]: of one picture M regions; of several pictures one region each, or one for all. `bboxes`: any BOUNDING_BOX; a point is a region.
    """
    places = points_of(points)
    try:
        boxes = [[] for _ in range(frames)] if bboxes is None else boxes_per_image(bboxes, frames)
    except ValueError as error:
        raise ValueError(f"bboxes: {error}") from error
    return [_regions(size, tower, _masks_of(mask, number, frames), boxes[number], places) for number in range(frames)]


def points_of(text: str) -> list[tuple[float, float]]:
    """x, y of [{"x": 12, "y": 34}, ...]; an empty text has none. Raises ValueError that begins with the field."""
    if not text.strip():
        return []
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'points: this is no JSON ({error}). Write [{{"x": 12, "y": 34}}], in pixels.') from error
    read = [read] if isinstance(read, dict) else read
    if not isinstance(read, list):
        raise ValueError(f'points: expected is a list such as [{{"x": 12, "y": 34}}], this is a {type(read).__name__}')
    places = []
    for number, point in enumerate(read, 1):
        values = [point.get(axis) for axis in "xy"] if isinstance(point, dict) else [None]
        if not all(
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values
        ):
            raise ValueError(
                f'points: point {number} must have numbers for "x" and "y", this is {json.dumps(point)[:80]}'
            )
        places.append(tuple(map(float, values)))
    return places


def _masks_of(mask: torch.Tensor | None, number: int, frames: int) -> torch.Tensor | None:
    if mask is None or frames == 1:
        return mask
    if len(mask) not in (1, frames):
        raise ValueError(
            f"mask: there are {len(mask)} masks for {frames} pictures: connect one for all, or one for each"
        )
    return mask[number if len(mask) > 1 else 0][None]


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
        masks = masks.cpu() >= SET
        marks = _told("mask", regions.masks_from_masks, masks, tower)
        whole = F.interpolate(masks[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0
        for row, mask in enumerate(whole):
            if not mask.any():  # smaller than a pixel of the picture
                whole[row] = F.adaptive_max_pool2d(masks[row][None].float(), size)[0] > 0
        parts.append((marks, torch.stack([_around(mask) for mask in whole]), whole))
    for field, corners in (
        ("bboxes", [box_corners(box) for box in boxes]),
        ("points", [(x, y, x, y) for x, y in points]),
    ):
        if corners:
            corners = torch.tensor(corners, dtype=torch.float32)
            marks = _told(field, regions.masks_from_boxes, corners, height, width, tower)
            parts.append((marks, corners, _filled(corners, height, width)))
    if not parts:
        return Regions(
            size,
            torch.zeros(0, tower, tower, dtype=torch.bool),
            torch.zeros(0, 4),
            torch.zeros(0, height, width, dtype=torch.bool),
        )
    marks, boxes, masks = (torch.cat(part) for part in zip(*parts))
    return Regions(size, marks[:, 0], boxes, masks)


def _told(field: str, make, *values) -> torch.Tensor:
    try:
        return make(*values)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _around(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return torch.stack((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)).float()


def _filled(corners: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """bool [N, height, width], the last row and column included as the model's marks have them."""
    inside = corners.clamp(min=0).minimum(torch.tensor([width - 1, height - 1] * 2)).long()
    x1, y1, x2, y2 = inside[:, :, None].unbind(1)
    rows, columns = torch.arange(height), torch.arange(width)
    return ((rows >= y1) & (rows <= y2))[:, :, None] & ((columns >= x1) & (columns <= x2))[:, None, :]
