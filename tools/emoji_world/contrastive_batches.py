"""What the tiny InternVL learns of the emoji world: pictures of 130 things, and their names in 110 languages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from mulan_nodes.mulan.internvl.zeroshot import BUILT_IN

from ..tinyworld.stages import SEED, as_input
from . import captions
from .concepts import CHARACTERS, english, languages, trained_languages
from .pictures import BACKGROUNDS, draw_corpus

VARIANTS = ("",) * 20 + tuple(BACKGROUNDS) * 2
THINGS, WORDINGS = 64, 6  # in a batch: things, and languages for each of them all
BARE = 0.5
SENTENCES = 6  # of those that InternVL has for a language, at most


def small_pictures(pictures: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [..., 3, 96, 96] -> uint8 [..., 3, size, size], as InternVL's preprocessing shrinks them."""
    flat = as_input(pictures.flatten(0, -4))
    shrunk = F.interpolate(flat, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return (shrunk.clamp(0, 1) * 255).round().to(torch.uint8).unflatten(0, pictures.shape[:-3])


def own_sentences(code: str) -> list[str]:
    """The first of InternVL's own sentences for labels in a language, around "{}"."""
    return [
        sentence.replace("{c}", "{}") for sentence in (BUILT_IN[code].sentences[:SENTENCES] if code in BUILT_IN else ())
    ]


class NameBatches:
    """Pictures with rows of their names' text states, drawn by a step's own random generator."""

    def __init__(self, rows_of: Callable[[list[str]], torch.Tensor], size: int):
        self.pictures = small_pictures(draw_corpus(SEED, VARIANTS), size)
        sentences = []
        for code in trained_languages():
            names = [name or english(thing) for thing, name in enumerate(languages()[code].names)]
            frames = ("{}", *captions.frames(code), *own_sentences(code))
            sentences.append([[sentence.format(name) for name in names] for sentence in frames])
        flat = rows_of([text for of_language in sentences for texts in of_language for text in texts])
        counts = [len(of_language) * len(CHARACTERS) for of_language in sentences]
        self.rows = [rows.unflatten(0, (-1, len(CHARACTERS))) for rows in flat.split(counts)]

    def draw(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures uint8 [64, 3, S, S], rows [6, 64, width], and which texts are alike [6, 64, 64]."""
        things = torch.from_numpy(rng.permutation(len(CHARACTERS))[:THINGS])
        pictures = self.pictures[things, torch.from_numpy(rng.integers(len(VARIANTS), size=THINGS))]
        chosen = []
        for language in rng.choice(len(self.rows), WORDINGS, replace=False):
            rows = self.rows[language]
            wording = 0 if len(rows) == 1 or rng.random() < BARE else rng.integers(1, len(rows))
            chosen.append(rows[wording, things])
        return pictures, torch.stack(chosen), torch.eye(THINGS).expand(WORDINGS, -1, -1)
