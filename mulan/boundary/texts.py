"""Text from outside: half characters, byte order marks, line breaks and punctuation of every script."""

from __future__ import annotations

import re
import unicodedata

# Commas and semicolons of the scripts that have their own, ASCII's first
COMMAS = ",\u055d\u060c\u07f8\u1363\u1802\u1808\u3001\ua4fe\ua60d\ua6f5\ufe10\ufe11\ufe50\ufe51\uff0c\uff64\u2e41\u2e4c"
SEMICOLONS = ";\u061b\u1364\u204f\u2e35\ua6f6\ufe14\ufe54\uff1b"

_SURROGATE = re.compile("[\ud800-\udfff]")


def whole_characters(text: str) -> tuple[str, int]:
    """Join pairs of surrogates and replace lone ones by U+FFFD: neither has an encoding in UTF-8.

    Returns the text and how many were replaced.
    """
    if not _SURROGATE.search(text):
        return text, 0
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return _SURROGATE.subn("\ufffd", joined)


def clean_text(text: str) -> str:
    """Return the text in whole characters, without byte order marks."""
    return whole_characters(text)[0].replace("\ufeff", "")


def split_lines(text: str) -> list[str]:
    """Split at every line break that Unicode knows; outer white space and empty lines go."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def is_foreign_punctuation(character: str) -> bool:
    """Return whether a character is punctuation outside ASCII, such as a full-width comma."""
    return character > "\x7f" and unicodedata.category(character).startswith("P")


def is_blank(text: str) -> bool:
    """Return whether nothing of a text can be seen: white space, controls, byte order marks."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)
