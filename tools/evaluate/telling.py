"""What every evaluation needs: the tiny models' files, how far it is, and a table in output/."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mulan_nodes.mulan.tiny_models.unpacking import INTERNVL, TEXT_ENCODER, TinyModel


def located(comfyui: Path, model: TinyModel) -> Path:
    """The file of a tiny model."""
    return comfyui / "models" / model.folder / model.name


def tiny_internvl(comfyui: Path, mode: str = "C"):
    """The tiny InternVL with its text encoder, loaded."""
    from mulan_nodes.mulan.internvl.internvl_loader import load_internvl

    return load_internvl(located(comfyui, INTERNVL), mode, located(comfyui, TEXT_ENCODER))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def tell(text: str, file: Path) -> None:
    """Print what was measured, and write it to a file."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, "utf-8")
    print(text, f"The tables: {os.path.relpath(file)}", sep="\n")


class Ticker:
    """One line, written over where somebody watches; elsewhere a line now and then."""

    EVERY = 30  # seconds

    def __init__(self):
        self._start, self._watched, self._last = time.monotonic(), sys.stdout.isatty(), 0.0

    def show(self, doing: str) -> None:
        seconds = time.monotonic() - self._start
        if self._watched:
            print(f"\r{f'  {doing}, {seconds:.0f} s':<79}", end="", flush=True)
        elif seconds - self._last >= self.EVERY:
            self._last = seconds
            print(f"  {doing}, {seconds:.0f} s", flush=True)

    def end(self) -> None:
        if self._watched:
            print()
