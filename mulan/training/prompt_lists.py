"""Prompts that a text encoder learns from: a folder of text files, one per language."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from ..images.captions import check_language
from .dataset import read_text


@dataclass(frozen=True)
class PromptList:
    """The prompts of one language: those to learn from, and those that only judge."""

    learned: tuple[str, ...]
    held_out: tuple[str, ...]


def read_prompts(folder: Path, held_out: int) -> dict[str, PromptList]:
    """Read a folder of ``xx.txt`` (the language's code), one prompt a line, each counted once: language -> prompts.

    The last `held_out` of each, a fifth at most, only judge. Raises ValueError for a folder without such a file, for
    one with another name or encoding, and for one of fewer than 2 prompts.
    """
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{folder} is not a folder with text files such as en.txt and zh.txt, one prompt a line")
    prompts = {}
    for path in files:
        check_language(path.stem)
        lines = list(dict.fromkeys(line.strip() for line in read_text(path).splitlines() if line.strip()))
        if len(lines) < 2:
            raise ValueError(f"{path} has {len(lines)} prompts, expected 2 or more, each in a line of its own")
        count = max(1, min(held_out, len(lines) // 5))
        prompts[path.stem] = PromptList(tuple(lines[:-count]), tuple(lines[-count:]))
    return prompts


class PromptStream:
    """The endless stream of prompts: that of an index is always the same. Languages come equally often, whatever their
    number of prompts; a share `empty_share` is empty.
    """

    def __init__(self, prompts: dict[str, PromptList], seed: int, empty_share: float):
        self._lists = [each.learned for _, each in sorted(prompts.items())]
        self._seed, self._empty_share = seed, empty_share

    def prompt(self, index: int) -> str:
        """Return the prompt of an index."""
        digest = hashlib.blake2b(f"{self._seed} prompt {index}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        empty, language, place = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        if empty < self._empty_share:
            return ""
        chosen = self._lists[int(language * len(self._lists))]
        return chosen[int(place * len(chosen))]
