"""What is kept of the last pictures, so that another question about one costs its own words only."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from .language_model import KeyValues
from .visionllm import Seen

LIMIT = 3 * 2**30  # bytes: two pictures of five views for the 7B model in half precision


@dataclass(frozen=True)
class Remembered:
    """A picture as seen, and the language model's cache of all that stands before the question."""

    seen: Seen
    cache: KeyValues

    @property
    def bytes(self) -> int:
        return self.cache.bytes + self.seen.tokens.nbytes + sum(level.nbytes for level in self.seen.levels)

    def to(self, device) -> Remembered:
        return Remembered(
            Seen(self.seen.tokens.to(device), [level.to(device) for level in self.seen.levels]), self.cache.to(device)
        )


class PictureMemory:
    """The pictures asked about last, up to `limit` bytes; the newest is kept even where it alone is larger."""

    def __init__(self, limit: int = LIMIT):
        self._limit = limit
        self._kept: OrderedDict[Hashable, Remembered] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self._kept.values())

    def get(self, key: Hashable) -> Remembered | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Hashable, entry: Remembered) -> None:
        self._kept[key] = entry
        while len(self._kept) > 1 and self.bytes > self._limit:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        self._kept.clear()


def content_key(pixels: np.ndarray) -> str:
    """A name for a picture's content: equal pixels, equal names."""
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).data).hexdigest()
