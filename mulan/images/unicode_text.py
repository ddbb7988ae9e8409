"""Unicode properties of characters: which are drawn as one, their script, their direction.

On the standard library: the `regex` package, which knows clusters too, is not in ComfyUI's requirements.
"""

from __future__ import annotations

import unicodedata

JOINER = "\u200d"
_VIRAMA = 9  # its combining class: the next consonant joins
_LEADING_VOWELS = frozenset("เแโใไເແໂໃໄ")  # Thai and Lao write them before the consonant they belong to
_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))

# The first word of a character's Unicode name says its script, but for these.
_SCRIPTS = {
    "Cjk": "Han",
    "Ideographic": "Han",
    "Fullwidth": "Latin",
    "Halfwidth": "Katakana",
    "Katakana-Hiragana": "Katakana",
    "Canadian": "Canadian Syllabics",
    "Egyptian": "Egyptian Hieroglyphs",
    "Micro": "Greek",
    "Feminine": "Latin",
    "Masculine": "Latin",
    "Modifier": "",
    "Mathematical": "",
    "Double-Struck": "",
    "Script": "",
    "Black-Letter": "",
}
WITHOUT_SPACES = frozenset(
    (
        "Han",
        "Hiragana",
        "Katakana",
        "Bopomofo",
        "Thai",
        "Lao",
        "Khmer",
        "Myanmar",
        "Tibetan",
        "Javanese",
        "Balinese",
        "Yi",
        "Egyptian Hieroglyphs",
        "Cuneiform",
    )
)


def joined(last: str, first: str) -> bool:
    """Return whether two neighbors are drawn as one: marks, conjuncts, emoji sequences, flags, Hangul of letters."""
    return (
        is_mark(first)
        or JOINER in (last, first)
        or unicodedata.combining(last) == _VIRAMA
        or last in _LEADING_VOWELS
        or "\U0001f3fb" <= first <= "\U0001f3ff"
        or "\u1160" <= first <= "\u11ff"
        or "\U0001f1e6" <= last <= "\U0001f1ff"
        and "\U0001f1e6" <= first <= "\U0001f1ff"
    )


def clusters(text: str) -> list[str]:
    """Split the text into pieces that are drawn as one."""
    pieces = []
    for character in text:
        if pieces and joined(pieces[-1][-1], character):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def is_mark(character: str) -> bool:
    """Return whether a character combines with the one before it."""
    return unicodedata.category(character).startswith("M")


def is_invisible(character: str) -> bool:
    """Return whether no font draws a character: controls and the like, not spaces."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn")


def is_selector(character: str) -> bool:
    """Return whether a character chooses a form of the one before it."""
    return character in _SELECTORS


def is_emoji(cluster: str) -> bool:
    """Return whether a cluster is meant to be drawn in color."""
    return "\ufe0f" in cluster or any(0x1F000 <= ord(character) <= 0x1FAFF for character in cluster)


def is_right_to_left(text: str) -> bool:
    """Return whether a text runs right to left, by its first character that has a direction."""
    for character in text:
        direction = unicodedata.bidirectional(character)
        if direction in ("R", "AL", "L"):
            return direction != "L"
    return False


def script(character: str) -> str:
    """Return the script of a letter, such as ``Latin`` or ``Han``; "" for what is not a letter."""
    if unicodedata.category(character)[0] != "L":
        return ""
    name = unicodedata.name(character, "").title().split()
    if not name:
        return ""
    word = name[0]
    return " ".join(name[:2]) if word in ("Old", "New") else _SCRIPTS.get(word, word)
