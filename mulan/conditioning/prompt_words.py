"""The words of a prompt, and the prompt without one of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..images.unicode_text import WITHOUT_SPACES, script
from .tokenizer import WindowTokenizer, units

MAX_WORDS = 256  # of one prompt: each takes a pass of text encoder and MODEL

_SYNTAX = re.compile(r":\s*[+-]?[\d.]+\s*(?=\))|(?<![\w\\])BREAK(?!\w)|embedding:[^\s,;()]+")
_INNER = frozenset("'’-\u200c\u200d")  # of a word: l'eau, t-shirt, and joiners of Persian and of emoji
_SEPARATORS = re.compile(r"[,\n，、،]+")


class Word(NamedTuple):
    """A word or phrase and where it stands in the prompt: (first character, behind the last), each time it comes."""

    text: str
    spans: tuple[tuple[int, int], ...]

    def left_out(self, prompt: str) -> str:
        """Return the prompt without this word."""
        for first, end in reversed(self.spans):
            prompt = prompt[:first] + prompt[end:]
        return prompt


def prompt_words(prompt: str, split: Callable[[str], Sequence[str]]) -> list[Word]:
    """Return each word of a prompt once, in order; weights, BREAK and textual inversions are none.

    `split` parts a run of characters of scripts that write no spaces. Raises ValueError for a prompt without words, or
    with more than `MAX_WORDS`.
    """
    spans: dict[str, list[tuple[int, int]]] = {}
    for first, end in _runs(prompt):
        unspaced = any(script(character) in WITHOUT_SPACES for character in prompt[first:end])
        for piece in split(prompt[first:end]) if unspaced else [prompt[first:end]]:
            spans.setdefault(piece.casefold(), []).append((first, first + len(piece)))
            first += len(piece)
    return _checked([Word(prompt[slice(*found[0])], tuple(found)) for found in spans.values()])


def chosen_words(prompt: str, chosen: str) -> list[Word]:
    """Return the words and phrases of a list (commas or line breaks between them), each with all its places.

    Raises ValueError for one that the prompt lacks.
    """
    words = []
    for text in dict.fromkeys(filter(None, map(str.strip, _SEPARATORS.split(chosen)))):
        spans = [match.span() for match in re.finditer(re.escape(text), prompt, re.IGNORECASE)]
        spans = [span for span in spans if _is_whole(prompt, *span)]
        if not spans:
            raise ValueError(f"{text!r} is not in the prompt {prompt[:200]!r}: write it as it stands there")
        words.append(Word(text, tuple(spans)))
    return _checked(words)


def unit_splitter(tokenizer: WindowTokenizer) -> Callable[[str], list[str]]:
    """Return a `split` by the tokenizer's pieces; characters that it takes apart into bytes stay whole."""

    def split(run: str) -> list[str]:
        pieces = [unit.text.removeprefix(" ") for unit in units(tokenizer.encode(run))]
        pieces = list(filter(None, pieces))
        return pieces if "".join(pieces) == run else list(run)

    return split


def _checked(words: list[Word]) -> list[Word]:
    if not words:
        raise ValueError("there are no words in the prompt: enter one")
    if len(words) > MAX_WORDS:
        raise ValueError(f"{len(words)} words, and at most {MAX_WORDS} are mapped at once. List fewer in `words`")
    return words


def _runs(prompt: str) -> Iterator[tuple[int, int]]:
    """Yield where characters of words stand together."""
    prompt = _SYNTAX.sub(lambda match: " " * len(match[0]), prompt)
    first = None
    for index, character in enumerate(prompt + " "):
        if _is_of_word(character):
            first = index if first is None else first
        elif first is not None:
            yield first, index
            first = None


def _is_of_word(character: str) -> bool:
    """Whether a letter, mark, digit or symbol such as an emoji."""
    return character in _INNER or unicodedata.category(character)[0] in "LMNS"


def _is_whole(prompt: str, first: int, end: int) -> bool:
    """Whether no letter of the same word stands before or behind; scripts without spaces have no such borders."""
    word = prompt[first:end]
    pairs = [(word[::-1], prompt[end : end + 1]), (word, prompt[first - 1 : first] if first else "")]
    return not any(
        outer and _is_of_word(outer) and _is_of_word(inner[0]) and _script_at(inner) not in WITHOUT_SPACES
        for inner, outer in pairs
    )


def _script_at(letters: str) -> str:
    """Return the script of the first letter: marks, such as Thai's of tone, have none of their own."""
    return next(filter(None, map(script, letters)), "")
