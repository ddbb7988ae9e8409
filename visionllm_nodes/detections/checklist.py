"""A checklist for images: what must be seen, and questions with their answers, in lines that a person can edit.

- `red fox`: it is there.
- `white rabbit: 2`: exactly two; `2+` for two or more, `0` for none.
- `Is it snowing?`: the answer is yes.
- `What is on the tree? snow, ice`: the answer begins with one of these.
- `red fox: Is it running?`: the same; the mask covers the red fox where the answer is another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ...mulan.boundary.limits import MAX_PROMPTS
from ...mulan.boundary.texts import split_lines
from .names import name_key, split_names

YES = ("yes",)
_BULLET = re.compile(r"(?:[-*•]|\d+[.)])\s+")
_QUESTION_MARKS = "?？؟՞፧⸮"
_QUESTION = re.compile(rf"(?P<question>.*[{_QUESTION_MARKS}])(?P<answers>[^{_QUESTION_MARKS}]*)")
_COLON = re.compile(r"(?P<name>[^:：]+)(?::(?=\s|\d|$)|：)(?P<rest>.*)")
_COUNT = re.compile(r"(?P<number>\d{1,4})\s*(?P<more>[+＋]?)")
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)}
_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class Thing:
    """Objects of a name of which there must be `fewest` to `most` (None: any number more)."""

    line: str
    name: str
    fewest: int = 1
    most: int | None = None

    def holds(self, count: int) -> bool:
        return self.fewest <= count and (self.most is None or count <= self.most)


@dataclass(frozen=True)
class Question:
    """A question whose answer must begin with one of `answers`. about: the name of the thing it is about, if any."""

    line: str
    question: str
    answers: tuple[str, ...] = YES
    about: str | None = None

    def holds(self, answer: str) -> bool:
        said = _words(answer)
        return any(words and said[: len(words)] == words for words in map(_words, self.answers))


Item = Thing | Question


def read_checklist(text: str) -> list[Item]:
    """Read the items, one per line. Raise ValueError that names a line which is none, and for a repeated thing."""
    lines = [_BULLET.sub("", line, count=1) if _BULLET.match(line) else line for line in split_lines(text)]
    if not lines:
        raise ValueError("enter what must be in the image, one thing or question per line")
    if len(lines) > MAX_PROMPTS:
        raise ValueError(f"it has {len(lines)} lines, and at most {MAX_PROMPTS} are checked")
    asked = {line: match for line in lines if (match := _QUESTION.fullmatch(line))}
    things = {line: _thing(line) for line in lines if line not in asked}
    names: dict[str, str] = {}
    for thing in things.values():
        if names.setdefault(name_key(thing.name), thing.line) != thing.line:
            raise ValueError(f"the lines {names[name_key(thing.name)]!r} and {thing.line!r} have one name. Keep one")
    named = {name_key(thing.name): thing.name for thing in things.values()}
    return [things[line] if line in things else _question(asked[line], named) for line in dict.fromkeys(lines)]


def things_of(items: Sequence[Item]) -> list[Thing]:
    """Return the things of a checklist, in their order."""
    return [item for item in items if isinstance(item, Thing)]


def questions_of(items: Sequence[Item]) -> list[Question]:
    """Return the questions of a checklist, in their order."""
    return [item for item in items if isinstance(item, Question)]


def _thing(line: str) -> Thing:
    match = _COLON.fullmatch(line)
    name, count = (match["name"].strip(), match["rest"].strip()) if match else (line, "1+")
    read = _COUNT.fullmatch(count)
    if read is None:
        raise ValueError(
            f"{count[:40]!r} in the line {line[:80]!r} is no number of objects, such as 2 or 2+, and no question with "
            "a question mark"
        )
    if len(split_names(name)) != 1:
        raise ValueError(f"the line {line[:80]!r} names several things. Write each in a line of its own")
    number = int(read["number"])
    return Thing(line, name, number, None if read["more"] else number)


def _question(match: re.Match[str], named: dict[str, str]) -> Question:
    """Read a question; what stands before a colon is what it is about only if it is one of the `named` things."""
    question, answers = match["question"].strip(), tuple(split_names(match["answers"])) or YES
    colon = _COLON.fullmatch(question)
    about = named.get(name_key(colon["name"])) if colon else None
    return Question(match[0], colon["rest"].strip() if colon and about else question, answers, about)


def _words(text: str) -> list[str]:
    """Return what answers are compared by, as in VQA's evaluation: words without case, articles and punctuation;
    numbers in digits. Every Chinese or Japanese character is a word.
    """
    kept = "".join(_spaced(character) for character in text.casefold())
    return [_NUMBERS.get(word, word) for word in kept.split() if word not in _ARTICLES]


def _spaced(character: str) -> str:
    if unicodedata.category(character)[0] not in "LNM":
        return " "
    wide = unicodedata.east_asian_width(character) == "W" and not "가" <= character <= "힣"
    return f" {character} " if wide else character
