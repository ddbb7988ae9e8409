"""Lists of names as people type them."""

from __future__ import annotations

import re

from ..model.prompt_templates import distinct

_BETWEEN = re.compile(r"[\n\r,;，、；،؛]")  # also the commas and semicolons of Chinese, Japanese and Arabic


def split_names(text: str) -> list[str]:
    """One per line, or separated by commas or semicolons of any script; without outer space, empty ones and repetitions."""
    return distinct(_BETWEEN.split(text))
