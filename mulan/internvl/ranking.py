"""The order of pictures or texts by their likeness to a query."""

from __future__ import annotations

import torch
from torch.nn import functional as F

BLOCK = 2**24  # scores at a time


def direction(vectors: torch.Tensor) -> torch.Tensor:
    """Unit vectors [Q, E] -> one [E]: their mean, of unit length."""
    return F.normalize(vectors.mean(dim=0), dim=0)


def rank(scores: torch.Tensor, top_k: int = 0, threshold: float = -1.0) -> list[int]:
    """Scores [N] -> the positions of those at or above the threshold, the highest first, equal ones as they stood; at most `top_k` (0: all)."""
    order = scores.argsort(descending=True, stable=True)
    kept = order[scores[order] >= threshold].tolist()
    return kept[:top_k] if top_k else kept


def best_pairs(a: torch.Tensor, b: torch.Tensor, count: int, same: bool = False) -> list[tuple[int, int, float]]:
    """Unit vectors [N, E] and [M, E] -> the `count` pairs (row, column, cosine) that are most alike, the highest first.

    `same`: b is a again, and each pair of two different ones counts once. Works through a in blocks: the whole matrix need not fit in memory.
    """
    block = max(1, BLOCK // len(b))
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(a), block):
        scores = a[start : start + block] @ b.T
        if same:
            scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).tril(start), -torch.inf)
        values, places = scores.flatten().topk(min(count, scores.numel()))
        found += [
            (start + place // len(b), place % len(b), value)
            for value, place in zip(values.tolist(), places.tolist())
            if value > -torch.inf
        ]
    return sorted(found, key=lambda pair: (-pair[2], pair[:2]))[:count]
