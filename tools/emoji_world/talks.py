"""Questions what a picture of the emoji world shows, to be answered by its name in a language."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..tinyworld.talks import QUESTIONS, Exchange
from .concepts import CHARACTERS, languages, trained_languages

# 130 things in 110 languages are more names than the model can hold.
TALKED_ABOUT = tuple(
    map(CHARACTERS.index, "🦁🐘🦓🐧🦉🐙🦀🦋🐌🐼🐬🐝🐢🐟🐻🐱🐶🐦🌵🌴🌻🍄🍉🍌🍓🍔🍕🎂🌲🍎🚗🏠🚀🚌🌙🌈🔥🎈🎸☂")
)


def ways_to_ask(code: str) -> list[str]:
    """What it is, in this language: by the language's name in English and in itself, and in the language's own words
    where they are known.
    """
    entry = languages()[code]
    known = QUESTIONS[code].describe.split("|")[:2] if code in QUESTIONS else []
    return [f"What is it in {entry.name}?", f"{entry.own_name}?", *known]


def ask(thing: int, code: str, rng: np.random.Generator) -> Exchange | None:
    """The question in one of its ways; None where the language has no name for the thing."""
    name, ways = languages()[code].names[thing], ways_to_ask(code)
    return Exchange(ways[int(rng.integers(len(ways)))], name) if name else None


def draw_exchanges(thing: int, count: int, codes: Sequence[str], rng: np.random.Generator) -> list[Exchange]:
    """Questions about one thing in some languages."""
    chosen = rng.permutation(len(codes))[: count + 1]
    return [asked for place in chosen if (asked := ask(thing, codes[int(place)], rng))][:count]


def all_words() -> list[str]:
    """Every text that occurs, for the tokenizer."""
    words = [way for code in trained_languages() for way in ways_to_ask(code)]
    return words + [name for code in trained_languages() for name in languages()[code].names if name]
