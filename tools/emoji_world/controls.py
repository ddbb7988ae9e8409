"""Trains adapters for comparison: of fewer things, and of a text encoder that knows nothing.

    python -m mulan_nodes.tools.emoji_world.controls FOLDER TEXTS

The folders are those of the finished stages and of the text encoder. Writes controls.md into the first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..tinyworld.adapter_training import TextStates
from ..tinyworld.stages import SEED, as_pictures
from ..tinyworld.text_training import TextEncoder, llama
from . import reader
from .adapter_training import SHOWN, STEPS, draw_names, train_adapter
from .autoencoder_training import train_autoencoder, train_decoder_further
from .base_training import Base, sample_pictures, train_base
from .concepts import CHARACTERS, HELD_OUT, SEEN, english, languages
from .sentence_training import train_whole_text_encoder
from .text_training import VOCABULARY

COUNTS = (15, 30, 60)
FEWER_STEPS = 1000  # than those of the world's own adapter
LANGUAGES = SHOWN[1:6]  # of five scripts
NEVER_SEEN = tuple(place for place, character in enumerate(CHARACTERS) if character in HELD_OUT)


class Drawer:
    """Draws names and reads them strictly."""

    def __init__(self, work_dir: Path):
        self.work_dir = work_dir
        self.autoencoder = train_decoder_further(work_dir, train_autoencoder(work_dir))
        self.base: Base = train_base(work_dir, self.autoencoder)
        self.reader = reader.load()

    def alone(self, things: Sequence[int]) -> float:
        """The share of English names that the base draws right without MuLan."""
        contexts = self.base.context([english(thing) for thing in things])
        return self._right(sample_pictures(self.autoencoder, self.base, contexts, self.base.context([""])), things)

    def line(self, text_encoder: TextEncoder, things: tuple[int, ...], steps: int, name: str) -> str:
        """Train an adapter on some things, and tell what it draws right of them and of those never seen."""
        adapter = train_adapter(self.work_dir, self.autoencoder, text_encoder, self.base, steps, things, name)
        states = TextStates(text_encoder)

        def right(code: str, asked: Sequence[int]) -> float:
            named = [(thing, text) for thing in asked if (text := languages()[code].names[thing])]
            drawn = draw_names(self.autoencoder, states, self.base, adapter, [text for _, text in named])
            return self._right(drawn, [thing for thing, _ in named])

        seen = [thing for place, thing in enumerate(things) if place % max(1, len(things) // 20) == 0]
        others = np.mean([right(code, seen) for code in LANGUAGES])
        unseen = np.mean([right(code, NEVER_SEEN) for code in LANGUAGES])
        line = (
            f"| {name} | {len(things)} | {steps} | {right('en', things):.2f} | {others:.2f} | "
            f"{right('en', NEVER_SEEN):.2f} | {unseen:.2f} |"
        )
        print(line, flush=True)
        return line

    def _right(self, pictures: torch.Tensor, things: Sequence[int]) -> float:
        return float(self.reader.agrees(as_pictures(pictures), list(things)).mean())


def main(work_dir: Path, text_dir: Path) -> None:
    drawer, text_encoder = Drawer(work_dir), train_whole_text_encoder(text_dir)
    order = [SEEN[place] for place in np.random.default_rng(SEED).permutation(len(SEEN))]
    torch.manual_seed(SEED)
    lines = [
        f"The base alone draws {drawer.alone(SEEN):.2f} of the things right and {drawer.alone(NEVER_SEEN):.2f} "
        f"of the {len(NEVER_SEEN)} that no adapter saw, both from English names.",
        "",
        "| adapter | its things | steps | English | other languages | never seen, English | never seen, others |",
        "| --- | --: | --: | --: | --: | --: | --: |",
        drawer.line(text_encoder, SEEN, STEPS, "adapter"),
        *(drawer.line(text_encoder, tuple(sorted(order[:count])), FEWER_STEPS, f"of_{count}") for count in COUNTS),
        drawer.line(TextEncoder(llama(VOCABULARY), text_encoder.tokenizer), SEEN, FEWER_STEPS, "random_encoder"),
    ]
    (work_dir / "controls.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
