"""Drawings by a diffusion model, good and bad, labelled by hand: what the strict reader is measured against.

Each was shown beside the thing that was wanted, before any reader had judged it. It "passes" where a person who sees
the drawing alone would name this thing, or pick it out of all of them at once; it "fails" where not; it is "unsure"
where the person hesitated. Even places set the reader's thresholds, odd ones measure it. Those that are "mixed" were
drawn from the mean of two things' contexts.
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
    """Drawings uint8 [N, 96, 96, 3], the things that were wanted [N], and their labels [N]."""

    pictures: np.ndarray
    wanted: np.ndarray
    labels: np.ndarray

    def half(self, odd: bool) -> Labelled:
        """Every second one."""
        return Labelled(self.pictures[odd::2], self.wanted[odd::2], self.labels[odd::2])


@dataclass(frozen=True)
class Errors:
    """How the reader differs from the person: how many of how many."""

    false_passes: int
    fails: int
    false_failures: int
    passes: int
    unsure_passed: int
    unsure: int

    def __str__(self) -> str:
        return (
            f"false passes {self.false_passes} of {self.fails}, false failures {self.false_failures} of {self.passes}, "
            f"passed where the person hesitated {self.unsure_passed} of {self.unsure}"
        )


def labelled() -> Labelled:
    """All of them."""
    entries = json.loads(LABELS.read_text())
    sheet = np.asarray(Image.open(SHEET).convert("RGB"))
    tiles = sheet.reshape(-1, PICTURE_SIZE, COLUMNS, PICTURE_SIZE, 3).swapaxes(1, 2)
    return Labelled(
        tiles.reshape(-1, PICTURE_SIZE, PICTURE_SIZE, 3)[[entry["tile"] for entry in entries]],
        np.array([CHARACTERS.index(entry["wanted"]) for entry in entries]),
        np.array([entry["label"] for entry in entries]),
    )


def errors(reader: Reader, drawings: Labelled) -> Errors:
    """What the reader gets wrong."""
    agrees = reader.agrees(drawings.pictures, drawings.wanted)
    fails, passes, unsure = (agrees[drawings.labels == label] for label in ("fails", "passes", "unsure"))
    return Errors(int(fails.sum()), len(fails), int((~passes).sum()), len(passes), int(unsure.sum()), len(unsure))
