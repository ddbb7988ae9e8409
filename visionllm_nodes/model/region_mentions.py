"""Regions that a conversation names: region1, region2, ...

Source: upstream's VCR dataset. A region stands in a question as <reg>region2<region></reg>; answers and later questions
write plain region2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .prompt_templates import Turn
from .special_tokens import region

MENTION = re.compile(r"(?<![A-Za-z0-9_])region ?(\d{1,9})(?!\d)", re.IGNORECASE)  # no \b: other scripts have no spaces


def place_regions(turns: Sequence[Turn], count: int) -> tuple[list[Turn], list[int]]:
    """Return the turns with a position at the first mention of each region, and the index of the region at each.

    Raises ValueError where a question names a region beyond `count`, and where none names any.
    """
    placed: list[int] = []

    def place(mention: re.Match) -> str:
        number = int(mention[1])
        if not 1 <= number <= count:
            marked = f"{count} region{'s are' if count > 1 else ' is'} marked" if count else "no region is marked"
            raise ValueError(f"it names region{number}, but {marked}")
        if number - 1 in placed:
            return f"region{number}"
        placed.append(number - 1)
        return region(f"region{number}")

    turns = [turn._replace(user=MENTION.sub(place, turn.user)) for turn in turns]
    if not placed:
        raise ValueError("it names no region. Write region1, region2, ... where you mean the marked ones")
    return turns, placed
