"""Prompts that a text encoder learns from: a folder of text files, one per language, apart or line by line the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ..images.captions import check_language
from .dataset import read_text

ENGLISH = "en"


class Prompt(NamedTuple):
    """A prompt, and what its teacher reads: the same, or the English one."""

    text: str
    meant: str


@dataclass(frozen=True)
class PromptList:
    """The prompts of one language: those to learn from, and those that only judge."""

    learned: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]


def read_prompts(folder: Path, held_out: int) -> dict[str, PromptList]:
    """Read a folder of ``xx.txt`` (the language's code), one prompt a line, each counted once: language -> prompts.

    The last `held_out` of each, a fifth at most, only judge. Raises ValueError for a folder without such a file, for
    one with another name or encoding, and for one of fewer than 2 prompts.
    """
    prompts = {}
    for path, lines in _read_lines(folder).items():
        distinct = [Prompt(line, line) for line in dict.fromkeys(lines) if line]
        count = _count_held_out(held_out, len(distinct))
        prompts[path.stem] = _checked(PromptList(tuple(distinct[:-count]), tuple(distinct[-count:])), path)
    return prompts


def read_translations(folder: Path, held_out: int) -> dict[str, PromptList]:
    """Read a folder as `read_prompts` does in which a line of each file says what the same line of en.txt says, and is
    empty where there is no translation. The lines held out are the same in all languages.

    Raises ValueError also for a folder without en.txt, and for a file of more or fewer lines.
    """
    files, prompts = _read_lines(folder), {}
    english = next((lines for path, lines in files.items() if path.stem == ENGLISH), None)
    if english is None:
        raise ValueError(f"{folder} has no {ENGLISH}.txt, whose lines those of the other languages translate")
    count = _count_held_out(held_out, len(english))
    for path, lines in files.items():
        if len(lines) != len(english):
            raise ValueError(
                f"{path} has {len(lines)} lines, but {ENGLISH}.txt has {len(english)}: each line is to translate the "
                "same line there, and to be empty where there is no translation"
            )
        pairs = [Prompt(text, meant) for text, meant in zip(lines, english, strict=True)]
        learned, judging = (tuple(each for each in part if all(each)) for part in (pairs[:-count], pairs[-count:]))
        prompts[path.stem] = _checked(PromptList(learned, judging), path)
    return prompts


def _read_lines(folder: Path) -> dict[Path, list[str]]:
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{folder} is not a folder with text files such as en.txt and zh.txt, one prompt a line")
    for path in files:
        check_language(path.stem)
    # not `splitlines`, which also ends a line at separators that stand inside of prompts
    lines = {path: read_text(path).removesuffix("\n").split("\n") for path in files}
    return {path: [line.strip() for line in of_file] for path, of_file in lines.items()}


def _count_held_out(wanted: int, count: int) -> int:
    return max(1, min(wanted, count // 5))


def _checked(prompts: PromptList, path: Path) -> PromptList:
    count = len(prompts.learned) + len(prompts.held_out)
    if count < 2:
        raise ValueError(f"{path} has {count} prompts, expected 2 or more, each in a line of its own")
    if not prompts.learned or not prompts.held_out:
        which = "but the last, which only judge" if not prompts.learned else "among the last, which only judge"
        raise ValueError(f"{path} has no translation {which}")
    return prompts


class PromptStream:
    """The endless stream of prompts: that of an index is always the same. Languages come equally often, whatever their
    number of prompts, and English in a share `english_share` of its own; a share `empty_share` is empty.
    """

    def __init__(self, prompts: dict[str, PromptList], seed: int, empty_share: float, english_share: float = 0.0):
        self._english = prompts[ENGLISH].learned if english_share else ()
        self._english_share = english_share
        self._lists = [each.learned for _, each in sorted(prompts.items())]
        self._seed, self._empty_share = seed, empty_share

    def prompt(self, index: int) -> Prompt:
        """Return the prompt of an index."""
        digest = hashlib.blake2b(f"{self._seed} prompt {index}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        kind, language, place = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        if kind < self._empty_share:
            return Prompt("", "")
        is_english = kind < self._empty_share + (1 - self._empty_share) * self._english_share
        chosen = self._english if is_english else self._lists[int(language * len(self._lists))]
        return chosen[int(place * len(chosen))]
