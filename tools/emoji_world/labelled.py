"""Drawings by a diffusion model, good and bad, labelled by hand: what the strict reader is measured against.

Each was shown beside the thing that was wanted, and passed where a person who sees the drawing alone would name this
thing, or pick it out of all of them at once. Even places set the reader's thresholds, odd ones measure it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .concepts import CHARACTERS, DATA
from .pictures import PICTURE_SIZE
from .reader import Reader

SHEET, LABELS = DATA / "labelled.webp", DATA / "labelled.json"
COLUMNS = 20


@dataclass(frozen=True)
class Labelled:
    """Drawings uint8 [N, 96, 96, 3], the things that were wanted [N], and whether a person passes each [N]."""

    pictures: np.ndarray
    wanted: np.ndarray
    passes: np.ndarray

    def half(self, odd: bool) -> Labelled:
        """Every second one."""
        return Labelled(self.pictures[odd::2], self.wanted[odd::2], self.passes[odd::2])


@dataclass(frozen=True)
class Errors:
    """How the reader differs from the person."""

    false_passes: int
    refused: int  # by the person
    false_failures: int
    passed: int  # by the person

    def __str__(self) -> str:
        return (
            f"false passes {self.false_passes} of {self.refused}, false failures {self.false_failures} of {self.passed}"
        )


def labelled() -> Labelled:
    """All of them."""
    entries = json.loads(LABELS.read_text())
    sheet = np.asarray(Image.open(SHEET).convert("RGB"))
    tiles = sheet.reshape(-1, PICTURE_SIZE, COLUMNS, PICTURE_SIZE, 3).swapaxes(1, 2)
    return Labelled(
        tiles.reshape(-1, PICTURE_SIZE, PICTURE_SIZE, 3)[[entry["tile"] for entry in entries]],
        np.array([CHARACTERS.index(entry["wanted"]) for entry in entries]),
        np.array([entry["passes"] for entry in entries]),
    )


def errors(reader: Reader, drawings: Labelled) -> Errors:
    """What the reader gets wrong."""
    agrees = reader.agrees(drawings.pictures, drawings.wanted)
    passes = drawings.passes
    return Errors(int((agrees & ~passes).sum()), int((~passes).sum()), int((~agrees & passes).sum()), int(passes.sum()))
