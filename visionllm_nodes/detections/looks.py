"""Looks: what lies in boxes, as parts of images and as vectors of InternVL."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...mulan.boundary.interrupts import interruptible
from ...mulan.internvl.internvl_model import LoadedInternVL
from .bounding_boxes import box_corners, pixel_bounds

FRAMING = "whole"  # squeezed into a square, as InternVL's authors do to compare images


def crop(image: torch.Tensor, box: dict, margin: int = 0) -> torch.Tensor | None:
    """Return the part [h, w, 3] of an image [H, W, C] in a box, with a margin in pixels; None where it has none."""
    pixels = pixel_bounds(box, image.shape[0], image.shape[1], margin)
    if pixels is None:
        return None
    x1, y1, x2, y2 = pixels
    return image[y1:y2, x1:x2, :3]


def embed_boxes(internvl: LoadedInternVL, images: torch.Tensor, frames: Sequence[Sequence[dict]]) -> list[np.ndarray]:
    """Return a vector for each box of each image, [n, E] per image.

    It is as long (0..1) as the part of the box that no other box covers; zero for a box outside.
    """
    crops = [[crop(image, box) for box in boxes] for image, boxes in zip(images, frames, strict=True)]
    inside = [part for of_image in crops for part in of_image if part is not None]
    vectors = iter(internvl.embed_images(inside, FRAMING).numpy())
    size = internvl.model.config.embedding_size
    looks = []
    for boxes, of_image in zip(interruptible(frames), crops, strict=True):
        rows = [np.zeros(size, np.float32) if part is None else next(vectors) for part in of_image]
        looks.append(np.array(rows).reshape(-1, size) * _clear_shares(boxes)[:, None])
    return looks


def _clear_shares(boxes: Sequence[dict]) -> np.ndarray:
    """Return of each box the share that the box covering most of it leaves, [n]."""
    corners = np.array([box_corners(box) for box in boxes], float).reshape(-1, 4)
    common = np.minimum(corners[:, None, 2:], corners[None, :, 2:]) - np.maximum(
        corners[:, None, :2], corners[None, :, :2]
    )
    common = common.clip(0).prod(-1)
    areas = common.diagonal().copy()
    np.fill_diagonal(common, 0)
    return 1 - np.divide(common.max(1, initial=0), areas, out=np.zeros_like(areas), where=areas > 0)
