"""What skeletons are made of: keypoint names, in the words that the model was trained on, and the bones between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Bones = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Skeleton:
    """`object`: whose keypoints they are, as the model is asked. `bones`: pairs of indices into `keypoints`."""

    object: str
    keypoints: tuple[str, ...]
    bones: Bones


def chains(*runs: Iterable[int]) -> Bones:
    """Return the bones along each run of indices."""
    return tuple(pair for run in map(list, runs) for pair in zip(run, run[1:], strict=False))


def closed(first: int, last: int) -> list[int]:
    """Return the run from `first` to `last` and back to `first`."""
    return [*range(first, last + 1), first]


def numbered(name: str, count: int, first: int = 1) -> list[str]:
    """Return the names of `count` points of one kind."""
    return [f"{name} {index}" for index in range(first, first + count)]


def mirrored(name: str, count: int, first: int = 1) -> list[str]:
    """Return them from the last to the first."""
    return numbered(name, count, first)[::-1]
