"""Marked regions: boxes, points and masks of a picture -> masks at the vision tower's size, which sees the whole picture as a square.

Source: upstream's boxes_to_masks and the mask prompts of its interactive dataset.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def of_boxes(boxes: torch.Tensor, height: int, width: int, size: int) -> torch.Tensor:
    """boxes [N, 4] x1 y1 x2 y2 in the picture's pixels -> bool [N, 1, size, size], the last row and column included.

    Boxes are cut at the picture's edges; ValueError for one that lies outside or is turned around.
    """
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist(), 1):
        if not (x1 <= x2 and y1 <= y2 and x1 < width and y1 < height and x2 >= 0 and y2 >= 0):
            raise ValueError(
                f"region {number} is empty: the box ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}) "
                f"holds no part of the {width} x {height} picture"
            )
    corners = (boxes * torch.tensor([size / width, size / height] * 2)).clamp(0, size - 1).long()
    index = torch.arange(size)
    x1, y1, x2, y2 = corners[:, :, None].unbind(1)
    return (((index >= y1) & (index <= y2))[:, :, None] & ((index >= x1) & (index <= x2))[:, None, :])[:, None]


def of_points(points: torch.Tensor, height: int, width: int, size: int) -> torch.Tensor:
    """points [N, 2] x y in the picture's pixels -> bool [N, 1, size, size] of one pixel each; ValueError for a point outside."""
    points = torch.as_tensor(points, dtype=torch.float32).reshape(-1, 2)
    return of_boxes(torch.cat((points, points), 1), height, width, size)


def of_masks(masks: torch.Tensor, size: int) -> torch.Tensor:
    """masks [N, H, W] of the whole picture at any size, any number or bool -> bool [N, 1, size, size]; ValueError for an empty one.

    Whatever bilinear resizing leaves other than zero is the region. A region that falls between its sample points keeps the pixels it touches.
    """
    if masks.ndim != 3 or 0 in masks.shape[1:]:
        raise ValueError(f"region masks must have the shape [regions, height, width], not {list(masks.shape)}")
    masks = masks.float()[:, None]
    regions = F.interpolate(masks, size=(size, size), mode="bilinear", align_corners=False) != 0
    for number in range(len(masks)):
        if not masks[number].any():
            raise ValueError(f"region {number + 1} is empty: its mask has no pixel")
        if not regions[number].any():
            regions[number] = F.adaptive_max_pool2d(masks[number], size) != 0
    return regions
