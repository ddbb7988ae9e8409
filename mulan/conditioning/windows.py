"""Cut a text that is longer than one window: behind a phrase, else between words, else between characters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from ..boundary.interrupts import interruptible
from ..images.unicode_text import joined
from .tokenizer import Piece, Unit, units

# How good a cut is at a position; the best within reach is taken.
INSIDE, CHARACTER, PIECE, WORD, PHRASE = range(5)

_ENDS_BEFORE_SPACE = frozenset(",.;:!?)]}")  # "3.5" and "f(x)y" go on
_ENDS = frozenset("，。、；：！？｡…）」』】》〉”»।॥؛،؟۔։።፣፤፥፦፧፨།၊။។៕៖")
_ENDS_WORD = frozenset("་፡\u200b")  # Tibetan, Ethiopic, and the zero-width space of Khmer, Burmese and Thai
_OPENS = frozenset("([{（「『【《〈“«")


def split_windows(pieces: Sequence[Piece], size: int) -> list[list[Piece]]:
    """Split pieces into runs of at most `size`; there is at least one run.

    A character is never cut in two, nor a run of bytes that fits a window.
    """
    if len(pieces) <= size:
        return [list(pieces)]
    whole = units(pieces)
    starts = list(accumulate((len(unit.pieces) for unit in whole), initial=0))
    cuts = [PHRASE] + [_cut_quality(before, after) for before, after in interruptible(pairwise(whole))]
    chunks, first, last = [], 0, 0
    while starts[-1] - starts[first] > size:
        while starts[last + 1] - starts[first] <= size:
            last += 1
        cut = _best_cut(cuts, starts, first, last, starts[first] + size // 2)
        chunks.append(list(pieces[starts[first] : starts[cut]]))
        first = cut
    return chunks + [list(pieces[starts[first] :])]


def _best_cut(cuts: list[int], starts: list[int], first: int, last: int, half: int) -> int:
    """Return the unit to begin the next window with: the last of the best cuts in the window's second half, or before
    it.
    """
    late = [i for i in range(last, first, -1) if starts[i] > half]
    early = [i for i in range(last, first, -1) if starts[i] <= half]
    for reach, worst in ((late, PIECE), (early, PIECE), (late + early, CHARACTER)):
        for quality in range(PHRASE, worst - 1, -1):
            for i in reach:
                if cuts[i] == quality:
                    return i
    return last


def _cut_quality(before: Unit, after: Unit) -> int:
    last, first = before.text[-1:], after.text[:1]
    if not last or not first or joined(last, first):
        return INSIDE
    if last in _ENDS and first not in _ENDS:
        return PHRASE
    if first.isspace() or last in _ENDS_WORD:
        return PHRASE if last in _ENDS_BEFORE_SPACE else WORD
    if (
        last.isspace()
        or last in _OPENS
        or first in _ENDS
        or first in _ENDS_BEFORE_SPACE
        or before.is_bytes
        and after.is_bytes
    ):
        return CHARACTER
    return PIECE
