"""Names of objects and keypoints, as people type them and as the datasets cleaned them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...mulan.boundary.texts import COMMAS, SEMICOLONS

_SEPARATORS = re.compile(f"[{re.escape(COMMAS + SEMICOLONS)}]")


def split_names(text: str) -> list[str]:
    """Return the unique names of a text: one per line, or separated by commas or semicolons of any script."""
    return unique_names([name for line in text.splitlines() for name in _SEPARATORS.split(line)])


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names without outer space, empty ones and repetitions, in their order."""
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def clean_expression(text: str) -> str:
    """Clean a text as RefCOCO's expressions were: lower case, no punctuation, '-' and '/' become spaces."""
    return re.sub(r"[-/]", " ", re.sub(r"[.,'!?\"()*#:;]", "", text.lower()))


def clean_name(text: str) -> str:
    """Clean the name of an object or keypoint as UniKPT's were: like an expression, and '_' becomes a space."""
    return clean_expression(text).replace("_", " ")


def normalize_name(name: str) -> str:
    """Return what two spellings of one name share."""
    return " ".join(clean_name(name.replace("\u2019", "'")).split())


def name_key(name: str) -> str:
    """Return what two spellings of one name share, also of a name that is nothing but punctuation."""
    return normalize_name(name) or name.strip().casefold()
