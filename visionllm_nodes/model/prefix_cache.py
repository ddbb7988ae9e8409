"""The KV caches of the last images: another question about one costs its own words only."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from .language_model import KVCache
from .visionllm import VisionFeatures

MAX_BYTES = 3 * 2**30  # two images of five views for the 7B model in half precision


@dataclass(frozen=True)
class CachedPrefix:
    """An image's features, and the KV cache of all that stands before the question."""

    features: VisionFeatures
    cache: KVCache

    @property
    def bytes(self) -> int:
        return self.cache.bytes + self.features.tokens.nbytes + sum(level.nbytes for level in self.features.levels)

    def to(self, device, room: int = 0) -> CachedPrefix:
        """Return the prefix on `device`; with `room`, its cache is a copy that takes so many tokens more."""
        features = VisionFeatures(self.features.tokens.to(device), [level.to(device) for level in self.features.levels])
        return CachedPrefix(features, self.cache.to(device, room))


class PrefixCache:
    """The prefixes used last, up to `max_bytes`; the newest is kept even where it alone is larger."""

    def __init__(self, max_bytes: int = MAX_BYTES):
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, CachedPrefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self._entries.values())

    def get(self, key: Hashable) -> CachedPrefix | None:
        """Return the prefix of `key` and make it the newest; None where it is not kept."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: Hashable, entry: CachedPrefix) -> None:
        """Keep a prefix; the oldest ones go where there is no room."""
        self._entries[key] = entry
        while len(self._entries) > 1 and self.bytes > self._max_bytes:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget all prefixes."""
        self._entries.clear()


def content_key(pixels: np.ndarray) -> str:
    """Return a key of an image's content: equal pixels, equal keys."""
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).data).hexdigest()
