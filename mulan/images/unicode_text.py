"""What Unicode says about characters: which are drawn as one, their script, their direction."""

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
    """Whether two neighbours are drawn as one: marks, conjuncts, emoji sequences, flags, Hangul of letters."""
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
    """The text in pieces that are drawn as one."""
    found = []
    for character in text:
        if found and joined(found[-1][-1], character):
            found[-1] += character
        else:
            found.append(character)
    return found


def is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def is_invisible(character: str) -> bool:
    """Controls and the like, which no font draws; not spaces."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn")


def is_selector(character: str) -> bool:
    """Chooses a form of the character before it."""
    return character in _SELECTORS


def is_emoji(cluster: str) -> bool:
    """Whether a cluster is meant to be drawn in colour."""
    return "\ufe0f" in cluster or any(0x1F000 <= ord(character) <= 0x1FAFF for character in cluster)


def is_right_to_left(text: str) -> bool:
    """By the first character that has a direction."""
    for character in text:
        direction = unicodedata.bidirectional(character)
        if direction in ("R", "AL", "L"):
            return direction != "L"
    return False


def script(character: str) -> str:
    """The script of a letter, such as ``Latin`` or ``Han``; "" for all that is no letter."""
    if unicodedata.category(character)[0] != "L":
        return ""
    name = unicodedata.name(character, "").title().split()
    if not name:
        return ""
    word = name[0]
    return " ".join(name[:2]) if word in ("Old", "New") else _SCRIPTS.get(word, word)
