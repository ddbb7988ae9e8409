"""Where a text that is longer than one window is cut: behind a phrase, else between words, else between characters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ..images.unicode_text import joined
from .tokenizer import Piece, Unit, units

# How good a place is to cut; the best within reach is taken.
INSIDE, CHARACTER, PIECE, WORD, PHRASE = range(5)

_ENDS_BEFORE_SPACE = frozenset(",.;:!?)]}")  # "3.5" and "f(x)y" go on
_ENDS = frozenset("，。、；：！？｡…）」』】》〉”»।॥؛،؟۔։።፣፤፥፦፧፨།၊။។៕៖\n")
_ENDS_WORD = frozenset("་፡\u200b")  # Tibetan, Ethiopic, and the space of no width of Khmer, Burmese and Thai
_OPENS = frozenset("([{（「『【《〈“«")


def split(pieces: Sequence[Piece], size: int) -> list[list[Piece]]:
    """Runs of at most `size` pieces, one at least. A character, and a run of bytes that would fit a window, is never cut in two."""
    if len(pieces) <= size:
        return [list(pieces)]
    whole = units(pieces)
    starts = list(accumulate((len(unit.pieces) for unit in whole), initial=0))
    places = [PHRASE] + [_place(before, after) for before, after in zip(whole, whole[1:])]
    chunks, first, last = [], 0, 0
    while starts[-1] - starts[first] > size:
        while starts[last + 1] - starts[first] <= size:
            last += 1
        cut = _best(places, starts, first, last, starts[first] + size // 2)
        chunks.append(list(pieces[starts[first] : starts[cut]]))
        first = cut
    return chunks + [list(pieces[starts[first] :])]


def _best(places: list[int], starts: list[int], first: int, last: int, half: int) -> int:
    """The unit to begin the next window with: the last one of the best place in the window's second half, or before that."""
    late = [i for i in range(last, first, -1) if starts[i] > half]
    early = [i for i in range(last, first, -1) if starts[i] <= half]
    for reach, worst in ((late, PIECE), (early, PIECE), (late + early, CHARACTER)):
        for place in range(PHRASE, worst - 1, -1):
            for i in reach:
                if places[i] == place:
                    return i
    return last


def _place(before: Unit, after: Unit) -> int:
    last, first = before.text[-1:], after.text[:1]
    if not last or not first or joined(last, first):
        return INSIDE
    if last == "\n" or last in _ENDS and first not in _ENDS:
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
