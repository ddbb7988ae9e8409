"""Regions: boxes, points and masks of an image -> masks at the vision tower's size; to it the whole image is a square.

Source: upstream's boxes_to_masks and the mask prompts of its interactive dataset.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...mulan.boundary.interrupts import interruptible


def masks_from_boxes(boxes: torch.Tensor, height: int, width: int, size: int) -> torch.Tensor:
    """Convert boxes [N, 4] x1 y1 x2 y2 in the image's pixels -> bool [N, 1, size, size].

    The last row and column are included. Boxes are cut at the image's edges. Raises ValueError for one that lies
    outside or ends before it begins.
    """
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    for position, (x1, y1, x2, y2) in enumerate(boxes.tolist(), 1):
        if not (x1 <= x2 and y1 <= y2 and x1 < width and y1 < height and x2 >= 0 and y2 >= 0):
            raise ValueError(
                f"region {position} is empty: the box ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}) "
                f"contains no part of the {width} x {height} image"
            )
    corners = (boxes * torch.tensor([size / width, size / height] * 2)).clamp(0, size - 1).long()
    pixels = torch.arange(size)
    x1, y1, x2, y2 = corners[:, :, None].unbind(1)
    return (((pixels >= y1) & (pixels <= y2))[:, :, None] & ((pixels >= x1) & (pixels <= x2))[:, None, :])[:, None]


def masks_from_points(points: torch.Tensor, height: int, width: int, size: int) -> torch.Tensor:
    """Convert points [N, 2] x y in the image's pixels -> bool [N, 1, size, size] of one pixel each.

    Raises ValueError for a point outside.
    """
    points = torch.as_tensor(points, dtype=torch.float32).reshape(-1, 2)
    return masks_from_boxes(torch.cat((points, points), 1), height, width, size)


def masks_from_masks(masks: torch.Tensor, size: int) -> torch.Tensor:
    """Convert masks [N, H, W] of the whole image at any size, of any dtype -> bool [N, 1, size, size].

    Whatever bilinear resizing leaves other than zero is the region. A region that falls between its sample points keeps
    the pixels it touches. Raises ValueError for an empty one.
    """
    if masks.ndim != 3 or 0 in masks.shape[1:]:
        raise ValueError(f"region masks must have the shape [regions, height, width], not {list(masks.shape)}")
    regions = torch.empty(len(masks), 1, size, size, dtype=torch.bool, device=masks.device)
    for index, mask in enumerate(interruptible(masks)):  # one by one: each becomes float32 as large as it is
        if not mask.any():
            raise ValueError(f"region {index + 1} is empty: its mask has no pixel")
        mask = mask.float()[None, None]
        regions[index] = F.interpolate(mask, size=(size, size), mode="bilinear", align_corners=False)[0] != 0
        if not regions[index].any():
            regions[index] = F.adaptive_max_pool2d(mask[0], size) != 0
    return regions
