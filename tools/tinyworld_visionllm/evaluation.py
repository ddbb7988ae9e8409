"""Scores: average precision, accuracies, mask overlap, keypoints, answers. Pure functions of numpy arrays, boxes as x0,
y0, x1, y1 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FOUND = 0.5  # IoU of a box with the object that it shows


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union, [N, 4] and [M, 4] -> [N, M]."""
    shared = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - np.maximum(boxes[:, None, :2], others[None, :, :2])
    shared = shared.clip(min=0).prod(axis=2)
    areas, other_areas = ((of[:, 2:] - of[:, :2]).clip(min=0).prod(axis=1) for of in (boxes, others))
    return shared / (areas[:, None] + other_areas[None] - shared).clip(min=1e-9)


@dataclass(frozen=True)
class Found:
    """What a detector said of one name in one image, and what is there: boxes [N, 4], scores [N], true boxes [M, 4]."""

    boxes: np.ndarray
    scores: np.ndarray
    truth: np.ndarray


def average_precision(answers: Sequence[Found], at_least: float = 0.5) -> float:
    """The area under the precision-recall curve of one name over all pictures (101 recall points, as COCO's). NaN where
    nothing is there.
    """
    total = sum(len(answer.truth) for answer in answers)
    if not total:
        return float("nan")
    scores, hits = [], []
    for answer in answers:
        iou = overlaps(answer.boxes, answer.truth)
        taken = np.zeros(len(answer.truth), bool)
        for index in np.argsort(-answer.scores, kind="stable"):
            free = np.where(taken, -1.0, iou[index]) if len(answer.truth) else np.empty(0)
            best = int(free.argmax()) if len(free) else -1
            hit = best >= 0 and free[best] >= at_least
            if hit:
                taken[best] = True
            scores.append(answer.scores[index])
            hits.append(hit)
    hits = np.array(hits, float)[np.argsort(-np.array(scores), kind="stable")]
    recall = hits.cumsum() / total
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    best_after = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101) - 1e-9)
    return float(np.append(best_after, 0.0)[places].mean())


def mean_average_precision(answers: Mapping[str, Sequence[Found]], at_least: float = 0.5) -> float:
    """The mean over the names of which something is there."""
    return float(np.nanmean([average_precision(of_name, at_least) for of_name in answers.values()]))


def box_accuracy(boxes: np.ndarray, truth: np.ndarray, at_least: float = 0.5) -> float:
    """The share of the boxes [N, 4] that overlap the one true box in the same row so much."""
    return float(
        np.mean([overlaps(box[None], true[None])[0, 0] >= at_least for box, true in zip(boxes, truth, strict=True)])
    )


def mask_overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two bool masks; 1 where both are empty."""
    union = (mask | truth).sum()
    return float((mask & truth).sum() / union) if union else 1.0


def keypoint_accuracy(found: np.ndarray, truth: np.ndarray, box: np.ndarray, within: float = 0.1) -> np.ndarray:
    """Which keypoints [K, 2] are within this part of the object's longer side of the true ones: bool [K] (PCK is their
    mean).
    """
    return np.hypot(*(found - truth).T) <= within * (box[2:] - box[:2]).max()


def exact_match(answer: str, truth: str) -> bool:
    """The same words, whatever the case, the spaces and a full stop."""

    def bare(text):
        return " ".join(text.lower().strip().rstrip(".").split())

    return bare(answer) == bare(truth)
