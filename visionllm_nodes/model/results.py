"""What the model found in one picture: plain records, best first."""
from __future__ import annotations

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
        return Detection(self.size, self.names, self.labels[index], self.scores[index], self.boxes[index],
                         None if self.masks is None else self.masks[index])


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
        return Keypoints(self.size, self.names, self.keypoint_names, self.labels[index], self.scores[index], self.boxes[index], self.keypoints[index])


@dataclass(frozen=True)
class Segmentation:
    """A name for every pixel: int64 [height, width] into `names`."""

    names: tuple[str, ...]
    labels: torch.Tensor

    def mask(self, name: str) -> torch.Tensor:
        """bool [height, width]."""
        return self.labels == self.names.index(name)


def in_order(scores: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """The one order of all results: the higher score first, then the upper, then the left box; int64 [N]."""
    rows = [(-score, box[1], box[0]) for score, box in zip(scores.tolist(), boxes.tolist())]
    return torch.tensor(sorted(range(len(rows)), key=rows.__getitem__), dtype=torch.long, device=scores.device)
