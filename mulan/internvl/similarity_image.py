"""A matrix of scores as a picture: a field for each pair, darker for more alike, with names and numbers where they fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from ..images.text_drawing import Colour, TextRenderer

MOST = 256  # rows and columns drawn
MARGIN, GAP = 24, 8
WIDEST_NAME = 260  # pixels
LARGEST_FIELD, SMALLEST_FIELD, NUMBERED_FIELD = 64, 4, 40
ROOM = 1400  # pixels that the fields take at most across, where they can be smaller
PAPER, INK, QUIET, LIGHT = (246, 247, 249), (28, 30, 34), (110, 114, 122), (255, 255, 255)
LOW, HIGH = (240, 244, 251), (24, 74, 158)
TEXT, SMALL = 16, 13


def draw(scores: torch.Tensor, rows: Sequence[str], columns: Sequence[str], lettering: TextRenderer) -> Image.Image:
    """Scores [N, M] with names for rows and columns -> an RGB picture. Colours run from the lowest to the highest score drawn."""
    return _Page(scores[:MOST, :MOST], rows, columns, lettering).draw()


class _Page:
    def __init__(self, scores: torch.Tensor, rows: Sequence[str], columns: Sequence[str], lettering: TextRenderer):
        self.scores, self.letters = scores, lettering
        self.left_out = [len(names) - drawn for names, drawn in zip((rows, columns), scores.shape)]
        self.field = max(SMALLEST_FIELD, min(LARGEST_FIELD, ROOM // max(scores.shape)))
        self.size = max(9, min(TEXT, self.field - 2))
        named = self.field >= self.size
        self.rows, self.columns = (
            [lettering.shorten(name, self.size, WIDEST_NAME) for name in names[:drawn]] if named else []
            for names, drawn in zip((rows, columns), scores.shape)
        )
        self.low, self.high = scores.min().item(), scores.max().item()

    def draw(self) -> Image.Image:
        widths = [
            max((self.letters.width(name, self.size) for name in names), default=0)
            for names in (self.rows, self.columns)
        ]
        left, top = (MARGIN + width + GAP for width in widths)
        height, width = (self.field * count for count in self.scores.shape)
        notes = self._notes()
        across = max(left + width, MARGIN + max(self.letters.width(note, SMALL) for note in notes)) + MARGIN
        picture = Image.new("RGB", (across, top + height + GAP + 22 * len(notes) + MARGIN), PAPER)
        for number, name in enumerate(self.rows):
            start = left - GAP - self.letters.width(name, self.size)
            self.letters.draw(picture, start, top + self._baseline(number), name, self.size, INK)
        for number, name in enumerate(self.columns):
            self._upwards(picture, left + self._baseline(number), top - GAP, name)
        self._fields(picture, left, top)
        for number, note in enumerate(notes):
            self.letters.draw(picture, MARGIN, top + height + GAP + 22 * number + 16, note, SMALL, QUIET)
        return picture

    def _fields(self, picture: Image.Image, left: int, top: int) -> None:
        pen, gap = ImageDraw.Draw(picture), 1 if self.field > 8 else 0
        for y, of_row in enumerate(self.scores.tolist()):
            for x, score in enumerate(of_row):
                share = (score - self.low) / (self.high - self.low) if self.high > self.low else 0.5
                corner = left + x * self.field, top + y * self.field
                pen.rectangle(
                    (*corner, corner[0] + self.field - 1 - gap, corner[1] + self.field - 1 - gap), _between(share)
                )
                if self.field >= NUMBERED_FIELD:
                    text = f"{score:.2f}"
                    start = corner[0] + (self.field - self.letters.width(text, TEXT)) // 2
                    self.letters.draw(
                        picture, start, corner[1] + self.field // 2 + 6, text, TEXT, LIGHT if share > 0.7 else INK
                    )

    def _upwards(self, picture: Image.Image, baseline: int, bottom: int, name: str) -> None:
        """A column's name, read from below."""
        strip = Image.new("RGB", (self.letters.width(name, self.size) + 2, 2 * self.size), PAPER)
        self.letters.draw(strip, 0, round(1.4 * self.size), name, self.size, INK)
        picture.paste(strip.rotate(90, expand=True), (baseline - round(1.4 * self.size), bottom - strip.width))

    def _baseline(self, number: int) -> int:
        return round((number + 0.5) * self.field + 0.35 * self.size)

    def _notes(self) -> list[str]:
        notes = [f"light: {self.low:.3f}, dark: {self.high:.3f} (cosine)"]
        notes += [
            f"{count} more {what} are not drawn" for count, what in zip(self.left_out, ("rows", "columns")) if count
        ]
        return notes


def _between(share: float) -> Colour:
    return tuple(round(low + (high - low) * share) for low, high in zip(LOW, HIGH))
