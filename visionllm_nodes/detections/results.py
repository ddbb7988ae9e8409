"""What the model found in one picture: plain records, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Detection:
    """N things: float32 boxes [N, 4] x1 y1 x2 y2 in pixels (they may reach over the edges), scores [N] in 0..1, labels int64 [N] into `names`.

    `masks` bool [N, height, width], where they were asked for. `size` is (height, width).
    """

    size: tuple[int, int]
    names: tuple[str, ...]
    labels: torch.Tensor
    scores: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: torch.Tensor) -> Detection:
        """The things at `index`, in its order."""
        return Detection(
            self.size,
            self.names,
            self.labels[index],
            self.scores[index],
            self.boxes[index],
            None if self.masks is None else self.masks[index],
        )


@dataclass(frozen=True)
class Keypoints:
    """N objects of `names` as in `Detection`, each with the K points of `keypoint_names`: float32 [N, K, 2], x y in pixels."""

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
        """The objects at `index`, in its order."""
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
        """bool [height, width]."""
        return self.labels == self.names.index(name)

    def areas(self) -> Detection:
        """Each name that has a pixel as one thing of score 1, in the names' order: its mask, and the box around all of that."""
        found = [(number, self.labels == number) for number in range(len(self.names)) if (self.labels == number).any()]
        masks = torch.stack([mask for _, mask in found])
        boxes = [
            [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            for columns, rows in (
                (mask.any(0).nonzero().flatten().tolist(), mask.any(1).nonzero().flatten().tolist()) for mask in masks
            )
        ]
        return Detection(
            tuple(self.labels.shape),
            self.names,
            torch.tensor([number for number, _ in found]),
            torch.ones(len(found)),
            torch.tensor(boxes, dtype=torch.float32),
            masks,
        )


def joined(found: Sequence[Detection]) -> Detection:
    """Things of one picture with the same names, one part behind the other."""
    masks = None if found[0].masks is None else torch.cat([part.masks for part in found])
    together = (torch.cat([getattr(part, name) for part in found]) for name in ("labels", "scores", "boxes"))
    return Detection(found[0].size, found[0].names, *together, masks)


def in_order(scores: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """The one order of all results: the higher score first, then the upper, then the left box; int64 [N]."""
    rows = [(-score, box[1], box[0]) for score, box in zip(scores.tolist(), boxes.tolist())]
    return torch.tensor(sorted(range(len(rows)), key=rows.__getitem__), dtype=torch.long, device=scores.device)


def nothing(size: tuple[int, int]) -> Detection:
    """No thing in a picture of this size."""
    return Detection(
        size,
        (),
        torch.zeros(0, dtype=torch.long),
        torch.zeros(0),
        torch.zeros(0, 4),
        torch.zeros(0, *size, dtype=torch.bool),
    )
