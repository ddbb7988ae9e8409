"""Text that people watch while a model writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class GrowingText:
    """The text of token ids that are generated one after another.

    Only the last ids are decoded again: those that may still become another character, and a few before them, because
    what a decoder makes of an id may depend on the one before.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._text = ""  # of the ids before `_settled`
        self._before = ""  # of those from `_start` to there, by themselves
        self._start = self._settled = 0

    def __call__(self, ids: Sequence[int]) -> str:
        """Return `decode(ids)`. The ids begin with those of the call before."""
        text = self._text + self._decode(ids[self._start :])[len(self._before) :]
        new = self._decode(ids[self._settled :])
        if new.strip() and not new.endswith("\ufffd"):  # seen by itself, and in whole characters
            self._text, self._before, self._start, self._settled = text, new, self._settled, len(ids)
        return text
