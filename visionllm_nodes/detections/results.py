"""Detections, keypoints and segmentations of one image: plain records, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchvision.ops import masks_to_boxes


@dataclass(frozen=True)
class Detections:
    """N detections in an image of `size` (height, width).

    labels: int64 [N] into `names`. scores: float32 [N] in 0..1. boxes: float32 [N, 4] x1 y1 x2 y2 in pixels; they may
    reach over the edges. masks: bool [N, height, width], where they were asked for.
    """

    size: tuple[int, int]
    names: tuple[str, ...]
    labels: torch.Tensor
    scores: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: torch.Tensor) -> Detections:
        """Return the detections at `index`, in its order."""
        return Detections(
            self.size,
            self.names,
            self.labels[index],
            self.scores[index],
            self.boxes[index],
            None if self.masks is None else self.masks[index],
        )


@dataclass(frozen=True)
class Keypoints:
    """N objects of `names` as in `Detections`, each with K keypoints: float32 [N, K, 2], x y in pixels."""

    size: tuple[int, int]
    names: tuple[str, ...]
    keypoint_names: tuple[str, ...]
    labels: torch.Tensor
    scores: torch.Tensor
    boxes: torch.Tensor
    keypoints: torch.Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: torch.Tensor) -> Keypoints:
        """Return the objects at `index`, in its order."""
        return Keypoints(
            self.size,
            self.names,
            self.keypoint_names,
            self.labels[index],
            self.scores[index],
            self.boxes[index],
            self.keypoints[index],
        )


@dataclass(frozen=True)
class Segmentation:
    """A name for every pixel: int64 [height, width] into `names`."""

    names: tuple[str, ...]
    labels: torch.Tensor

    def mask(self, name: str) -> torch.Tensor:
        """Return the pixels of a name, bool [height, width]."""
        return self.labels == self.names.index(name)

    def to_detections(self) -> Detections:
        """Return each name that has a pixel as one detection of score 1, in the names' order.

        Its box is around all of its pixels.
        """
        labels = self.labels.unique()
        masks = self.labels == labels[:, None, None]
        boxes = masks_to_boxes(masks)
        boxes[:, 2:] += 1  # torchvision's end on the last pixel
        height, width = self.labels.shape
        return Detections((height, width), self.names, labels, torch.ones(len(labels)), boxes, masks)


def concatenate(parts: Sequence[Detections]) -> Detections:
    """Return detections of one image with the same names as one record, one part behind the other."""
    masks = [part.masks for part in parts if part.masks is not None]
    return Detections(
        parts[0].size,
        parts[0].names,
        torch.cat([part.labels for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.boxes for part in parts]),
        torch.cat(masks) if len(masks) == len(parts) else None,
    )


def sort_order(scores: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return the index that sorts results, int64 [N]: the higher score first, then the upper, then the left box."""
    rows = [(-score, box[1], box[0]) for score, box in zip(scores.tolist(), boxes.tolist(), strict=True)]
    return torch.tensor(sorted(range(len(rows)), key=rows.__getitem__), dtype=torch.long, device=scores.device)


def no_detections(size: tuple[int, int]) -> Detections:
    """Return the record of an image of `size` (height, width) in which nothing was detected."""
    return Detections(
        size,
        (),
        torch.zeros(0, dtype=torch.long),
        torch.zeros(0),
        torch.zeros(0, 4),
        torch.zeros(0, *size, dtype=torch.bool),
    )
