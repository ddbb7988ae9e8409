"""Embeddings of images or texts, and their order by likeness."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..boundary.interrupts import interruptible

IMAGE, TEXT, VIDEO = "picture", "text", "video"  # kinds of embeddings
MAX_BLOCK = 2**24  # scores at a time


@dataclass(frozen=True)
class Embeddings:
    """Vectors, and what is needed to compare them.

    `vectors` [N, E] float32 on the CPU, each of unit length; `names` of what they stand for; `kind`: IMAGE, TEXT or
    VIDEO; `identity`: that of the model which made them (`LoadedInternVL.identity`).
    """

    vectors: torch.Tensor
    names: tuple[str, ...]
    kind: str
    identity: str

    def __len__(self) -> int:
        return len(self.names)


def check_same_model(field: str, identity: str, other: str, other_identity: str) -> None:
    """Raise ValueError where vectors of two models, modes or precisions would be compared: they do not live in one
    space.
    """
    if identity != other_identity:
        raise ValueError(
            f"{field}: these embeddings were made by another model, mode or precision ({identity}) than {other} "
            f"({other_identity}). "
            f"Make both with the same InternVL Loader."
        )


def mean_embedding(vectors: torch.Tensor) -> torch.Tensor:
    """Return the mean [E] of unit vectors [Q, E], of unit length again."""
    return F.normalize(vectors.mean(dim=0), dim=0)


def rank(scores: torch.Tensor, top_k: int = 0, threshold: float = -1.0) -> list[int]:
    """Return the indices of scores [N] at or above the threshold, the highest first, equal ones in their order; at most
    `top_k` (0: all).
    """
    order = scores.argsort(descending=True, stable=True)
    kept = order[scores[order] >= threshold].tolist()
    return kept[:top_k] if top_k else kept


def best_pairs(a: torch.Tensor, b: torch.Tensor, count: int, same: bool = False) -> list[tuple[int, int, float]]:
    """Return the `count` pairs (row, column, cosine) of unit vectors [N, E] and [M, E] with the highest cosine, the
    highest first.

    `same`: b is a again, and each pair of two different ones counts once. Works through a in blocks: the whole matrix
    need not fit in memory.
    """
    block = max(1, MAX_BLOCK // len(b))
    pairs: list[tuple[int, int, float]] = []
    for start in interruptible(range(0, len(a), block)):
        scores = a[start : start + block] @ b.T
        if same:
            scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).tril(start), -torch.inf)
        values, indices = scores.flatten().topk(min(count, scores.numel()))
        pairs += [
            (start + index // len(b), index % len(b), value)
            for value, index in zip(values.tolist(), indices.tolist(), strict=True)
            if value > -torch.inf
        ]
        if len(pairs) > 2 * count:
            pairs = _best(pairs, count)
    return _best(pairs, count)


def _best(pairs: list[tuple[int, int, float]], count: int) -> list[tuple[int, int, float]]:
    return sorted(pairs, key=lambda pair: (-pair[2], pair[:2]))[:count]
