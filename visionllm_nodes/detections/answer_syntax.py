"""Lists and objects as language models write them: JSON, Python, arguments of a call, and what broke off of these.

Nothing is refused. A group ends at its bracket, at a character that fits none of them, or with the text; commas may be
missing, and any closing bracket closes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...mulan.boundary.interrupts import interruptible

NUMBER = r"[-+]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][-+]?\d{1,4})?(?![\w.])"
NUMBERS = re.compile(NUMBER)
OPENERS, CLOSERS, KEY_ENDS = "[({", "])}", ":="
MAX_DEPTH = 50  # of groups in groups
_TOKEN = re.compile(
    rf"(?P<space>\s+)|(?P<number>{NUMBER})"
    r"""|(?P<string>"(?:[^"\\\n]|\\.){0,2000}"|'(?:[^'\\\n]|\\.){0,2000}')"""
    r"|(?P<word>[^\W\d][\w-]{0,100})|(?P<mark>[\[\](){},:;=])"
)
# Marks of East Asian scripts, one character for one: places in both texts are the same.
_FULL_WIDTH = str.maketrans("（）［］【】｛｝，：；＝“”", '()[][]{},:;=""')


@dataclass
class Group:
    """What stands between two brackets: values, with the key where they have one, else None.

    `closed` says whether it has its closing bracket, `start` and `end` where it stands in the text.
    """

    opener: str
    start: int
    end: int = 0
    closed: bool = False
    items: list[tuple[str | None, float | str | Group]] = field(default_factory=list)

    @property
    def span(self) -> tuple[int, int]:
        return self.start, self.end

    @property
    def is_pair(self) -> bool:
        """Whether it is (x, y), with its brackets."""
        return self.opener == "(" and self.closed and len(self.numbers or ()) == 2

    @property
    def values(self) -> list[float | str | Group]:
        """The values without a key."""
        return [value for key, value in self.items if key is None]

    @property
    def numbers(self) -> list[float] | None:
        """The values, if they are numbers and nothing else."""
        numbers = [value for key, value in self.items if key is None and isinstance(value, float)]
        return numbers if numbers and len(numbers) == len(self.items) else None


Value = float | str | Group


def plain_marks(text: str) -> str:
    """Return a text of the same length in which brackets, commas and quotes are ASCII's."""
    return text.translate(_FULL_WIDTH)


def read_group(text: str, start: int) -> Group:
    """Read the group whose opening bracket is at `start`, in one pass. `text` has plain marks."""
    root = Group(text[start], start)
    stack, after_word, end = [root], False, start + 1
    key: str | None = None
    for match in interruptible(_tokens(text, end)):
        kind, token, top = match.lastgroup, match[0], stack[-1]
        if kind == "mark" and token in OPENERS:
            if len(stack) == MAX_DEPTH:
                break
            group = Group(token, match.start())
            top.items.append((key, group))
            stack.append(group)
            key = None
        elif kind == "mark" and token in CLOSERS:
            top.closed, top.end, key = True, match.end(), None
            stack.pop()
            if not stack:
                return root
        elif kind == "mark" and token in KEY_ENDS:
            named = top.items.pop()[1] if top.items else root
            if isinstance(named, Group):
                break
            key = named if isinstance(named, str) else f"{named:g}"
        elif kind == "mark":
            key = None
        elif kind == "word" and after_word:
            break  # prose
        elif kind != "space":
            top.items.append((key, _value(kind, token)))
            key = None
        after_word = kind == "word" or (kind == "space" and after_word)
        end = match.end()
    for group in stack:
        group.end = end
    return root


def _tokens(text: str, start: int) -> Iterator[re.Match]:
    while match := _TOKEN.match(text, start):
        yield match
        start = match.end()


def _value(kind: str | None, token: str) -> float | str:
    if kind == "number":
        return float(token)
    if kind == "word":
        return token
    try:
        return json.loads(f'"{token[1:-1]}"') if "\\" in token else token[1:-1]
    except ValueError:  # an escape that JSON does not know
        return token[1:-1]
