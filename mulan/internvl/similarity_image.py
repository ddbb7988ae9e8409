"""A matrix of scores as an image: a cell for each pair, darker for more alike, names and numbers where they fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from ..boundary.interrupts import interruptible
from ..boundary.limits import MAX_NAME_LENGTH
from ..images.text_drawing import Color, TextRenderer

MAX_NAMES = 256  # rows and columns drawn
MARGIN, GAP = 24, 8
MAX_NAME_WIDTH = 260  # pixels
MAX_CELL, MIN_CELL, MIN_NUMBERED_CELL = 64, 4, 40
MAX_WIDTH = 1400  # pixels that the cells take at most, where they can be smaller
BACKGROUND, TEXT_COLOR, NOTE_COLOR, LIGHT = (246, 247, 249), (28, 30, 34), (110, 114, 122), (255, 255, 255)
LOW, HIGH = (240, 244, 251), (24, 74, 158)
TEXT_SIZE, NOTE_SIZE = 16, 13


def draw_similarity(
    scores: torch.Tensor, row_names: Sequence[str], column_names: Sequence[str], renderer: TextRenderer
) -> Image.Image:
    """Draw scores [N, M] with names for rows and columns as an RGB image.

    Colors run from the lowest to the highest score drawn.
    """
    return _Page(scores[:MAX_NAMES, :MAX_NAMES], row_names, column_names, renderer).draw()


class _Page:
    def __init__(
        self, scores: torch.Tensor, row_names: Sequence[str], column_names: Sequence[str], renderer: TextRenderer
    ):
        self.scores, self.renderer = scores, renderer
        self.left_out = [
            len(names) - drawn for names, drawn in zip((row_names, column_names), scores.shape, strict=True)
        ]
        self.cell = max(MIN_CELL, min(MAX_CELL, MAX_WIDTH // max(scores.shape)))
        self.size = max(9, min(TEXT_SIZE, self.cell - 2))
        named = self.cell >= self.size
        self.rows, self.columns = (
            [self._shorten(name) for name in interruptible(names[:drawn])] if named else []
            for names, drawn in zip((row_names, column_names), scores.shape, strict=True)
        )
        self.low, self.high = scores.min().item(), scores.max().item()

    def draw(self) -> Image.Image:
        widths = [
            max((self.renderer.width(name, self.size) for name in names), default=0)
            for names in (self.rows, self.columns)
        ]
        left, top = (MARGIN + width + GAP for width in widths)
        height, width = (self.cell * count for count in self.scores.shape)
        notes = self._notes()
        page_width = max(left + width, MARGIN + max(self.renderer.width(note, NOTE_SIZE) for note in notes)) + MARGIN
        image = Image.new("RGB", (page_width, top + height + GAP + 22 * len(notes) + MARGIN), BACKGROUND)
        for index, name in enumerate(self.rows):
            start = left - GAP - self.renderer.width(name, self.size)
            self.renderer.draw(image, start, top + self._baseline(index), name, self.size, TEXT_COLOR)
        for index, name in enumerate(self.columns):
            self._draw_upwards(image, left + self._baseline(index), top - GAP, name)
        self._draw_cells(image, left, top)
        for index, note in enumerate(notes):
            self.renderer.draw(image, MARGIN, top + height + GAP + 22 * index + 16, note, NOTE_SIZE, NOTE_COLOR)
        return image

    def _draw_cells(self, image: Image.Image, left: int, top: int) -> None:
        drawing, gap = ImageDraw.Draw(image), 1 if self.cell > 8 else 0
        for y, row in enumerate(interruptible(self.scores.tolist())):
            for x, score in enumerate(row):
                share = (score - self.low) / (self.high - self.low) if self.high > self.low else 0.5
                corner = left + x * self.cell, top + y * self.cell
                drawing.rectangle(
                    (*corner, corner[0] + self.cell - 1 - gap, corner[1] + self.cell - 1 - gap), _mix(share)
                )
                if self.cell >= MIN_NUMBERED_CELL:
                    text = f"{score:.2f}"
                    start = corner[0] + (self.cell - self.renderer.width(text, TEXT_SIZE)) // 2
                    self.renderer.draw(
                        image,
                        start,
                        corner[1] + self.cell // 2 + 6,
                        text,
                        TEXT_SIZE,
                        LIGHT if share > 0.7 else TEXT_COLOR,
                    )

    def _shorten(self, name: str) -> str:
        return self.renderer.shorten(name[:MAX_NAME_LENGTH], self.size, MAX_NAME_WIDTH)

    def _draw_upwards(self, image: Image.Image, baseline: int, bottom: int, name: str) -> None:
        """Draw the name of a column, to be read from below."""
        strip = Image.new("RGB", (self.renderer.width(name, self.size) + 2, 2 * self.size), BACKGROUND)
        self.renderer.draw(strip, 0, round(1.4 * self.size), name, self.size, TEXT_COLOR)
        image.paste(strip.rotate(90, expand=True), (baseline - round(1.4 * self.size), bottom - strip.width))

    def _baseline(self, index: int) -> int:
        return round((index + 0.5) * self.cell + 0.35 * self.size)

    def _notes(self) -> list[str]:
        notes = [f"light: {self.low:.3f}, dark: {self.high:.3f} (cosine)"]
        notes += [
            f"{count} more {what} are not drawn"
            for count, what in zip(self.left_out, ("rows", "columns"), strict=True)
            if count
        ]
        return notes


def _mix(share: float) -> Color:
    red, green, blue = (round(low + (high - low) * share) for low, high in zip(LOW, HIGH, strict=True))
    return red, green, blue
