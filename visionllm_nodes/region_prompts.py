"""Regions that a user marks with masks, boxes or points: as the model takes them, and as they lie in the image."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..mulan.boundary.files import parse_json
from ..mulan.boundary.interrupts import interruptible
from ..mulan.boundary.limits import MAX_REGIONS
from ..nodes.common import with_field_name
from .detections.bounding_boxes import box_corners, boxes_per_image
from .detections.masks import MASK_THRESHOLD, check_mask_pixels
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


def region_inputs() -> list[io.Input]:
    """Return the inputs that mark regions: what `regions_per_image` takes."""
    return [
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Regions as masks. With a single image, each mask is a region. With a batch, one mask per "
            "image or one for all. Masks of another size are stretched to the image.",
        ),
        io.BoundingBox.Input(
            "bboxes",
            optional=True,
            force_input=True,
            tooltip="Regions as bounding boxes in pixels: one box, a list, or a list per image.",
        ),
        io.String.Input(
            "points",
            default="",
            optional=True,
            tooltip='Regions as points in pixels: [{"x": 12, "y": 34}]. Each point is one region, the same in '
            "every image.",
        ),
    ]


def regions_per_image(
    sizes: Sequence[tuple[int, int]], tower: int, mask: torch.Tensor | None = None, bboxes=None, points: str = ""
) -> list[Regions]:
    """Return the regions of each image of these sizes (height, width): its masks, then its boxes, then the points.

    mask [M, h, w]: M regions of a single image; with several images one region each, or one for all. `bboxes`: any
    BOUNDING_BOX. Each point is a region. Raise ValueError that begins with the field, also for too many regions.
    """
    coordinates, frames = parse_points(points), len(sizes)
    if bboxes is None:
        boxes = [[] for _ in range(frames)]
    else:
        boxes = with_field_name("bboxes", boxes_per_image, bboxes)
        boxes = boxes * frames if len(boxes) == 1 else with_field_name("bboxes", boxes_per_image, bboxes, frames)
    masks = [_masks_of_image(mask, index, frames) for index in range(frames)]
    _check_counts(sizes, tower, masks, boxes, coordinates)
    return [
        _regions(size, tower, masks_of_image, boxes_of_image, coordinates)
        for size, masks_of_image, boxes_of_image in interruptible(zip(sizes, masks, boxes, strict=True))
    ]


def _check_counts(
    sizes: Sequence[tuple[int, int]], tower: int, masks: Sequence, boxes: Sequence, points: Sequence
) -> None:
    counts = [
        ("mask", [0 if of_image is None else len(of_image) for of_image in masks]),
        ("bboxes", [len(of_image) for of_image in boxes]),
        ("points", [len(points)] * len(boxes)),
    ]
    given = ", ".join(field for field, of_images in counts if any(of_images))
    of_images = [sum(parts) for parts in zip(*(of_images for _, of_images in counts), strict=True)]
    most, count = max(of_images), sum(of_images)
    if most > MAX_REGIONS:
        raise ValueError(f"{given}: {most} regions, and at most {MAX_REGIONS} of one image are asked about")
    for height, width in (max(sizes, key=math.prod), (tower, tower)):
        with_field_name(given, check_mask_pixels, count, height, width)


def parse_points(text: str) -> list[tuple[float, float]]:
    """Return x, y of [{"x": 12, "y": 34}, ...]; an empty text has none. Raise ValueError that begins with the field."""
    if not text.strip():
        return []
    try:
        read = parse_json(text)
    except ValueError as error:
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
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


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
        masks = _pixels_of(masks)
        marks = with_field_name("mask", regions.masks_from_masks, masks, tower)
        covered = torch.empty(len(masks), height, width, dtype=torch.bool)
        around = torch.empty(len(masks), 4)
        for row, mask in enumerate(interruptible(masks)):  # one by one, since they are enlarged as float32
            covered[row] = F.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")[0, 0] > 0
            if not covered[row].any():  # smaller than a pixel of the image
                covered[row] = F.adaptive_max_pool2d(mask[None].float(), size)[0] > 0
            around[row] = _box_of_mask(covered[row])
        parts.append((marks, around, covered))
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


def _pixels_of(masks: torch.Tensor) -> torch.Tensor:
    """Return masks float [N, H, W] as bool on the CPU."""
    pixels = torch.empty(masks.shape, dtype=torch.bool)
    for row, mask in enumerate(interruptible(masks)):
        pixels[row] = mask.cpu() >= MASK_THRESHOLD
    return pixels


def _box_of_mask(mask: torch.Tensor) -> torch.Tensor:
    """Return the box float32 [4] x1 y1 x2 y2 around a mask bool [height, width] that is not empty."""
    rows, columns = (mask.any(side).nonzero()[:, 0] for side in (1, 0))
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def _filled(corners: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return bool [N, height, width]; like the model's marks, boxes include the last row and column."""
    inside = corners.clamp(min=0).minimum(torch.tensor([width - 1, height - 1] * 2)).long()
    x1, y1, x2, y2 = inside[:, :, None].unbind(1)
    rows, columns = torch.arange(height), torch.arange(width)
    return ((rows >= y1) & (rows <= y2))[:, :, None] & ((columns >= x1) & (columns <= x2))[:, None, :]
