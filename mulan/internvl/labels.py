"""Lists of labels as people type them: one per line, since labels themselves may hold commas."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


class Labels(NamedTuple):
    names: tuple[str, ...]  # each once, in the order of the text
    repeated: tuple[str, ...]  # those that stood there more than once


def read_labels(text: str) -> Labels:
    """One label per line, without outer space and empty lines. Raises ValueError where there is none."""
    counts = Counter(line.strip() for line in text.splitlines() if line.strip())
    if not counts:
        raise ValueError("there is no label: write one per line, such as a red circle")
    return Labels(tuple(counts), tuple(name for name, count in counts.items() if count > 1))
