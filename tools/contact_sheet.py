"""A labelled sheet of pictures: a row per language, a column per prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mulan_nodes.mulan.images.text_drawing import TextRenderer

CELL, GAP, MARGIN, LABEL_WIDTH, HEAD_HEIGHT, TITLE_HEIGHT, SECTION_HEIGHT = 128, 10, 28, 200, 60, 88, 46
PAPER, INK, QUIET, RULE = (255, 255, 255), (28, 30, 34), (110, 114, 122), (222, 224, 228)
# Pillow's own font has Latin letters only and few machines have fonts for all the other scripts, so the names of the
# twelve languages of the shapes were drawn once. Other names are drawn in the fonts that are found, or left out.
NAMES_FILE = Path(__file__).with_name("language_names.png")


@dataclass(frozen=True)
class SheetRow:
    """own_name: the language's name in its own script, "" to leave it out."""

    name: str
    own_name: str
    pictures: Sequence[np.ndarray]


def contact_sheet(
    title: str, subtitle: str, heads: Sequence[str], sections: Mapping[str, Sequence[SheetRow]], cell: int = CELL
) -> Image.Image:
    """heads: what each column's prompt means; a line break starts a smaller second line. sections: heading -> rows.

    cell: the side of a picture.
    """
    rows = sum(len(section) for section in sections.values())
    width = 2 * MARGIN + LABEL_WIDTH + len(heads) * (cell + GAP) - GAP
    height = 2 * MARGIN + TITLE_HEIGHT + HEAD_HEIGHT + len(sections) * SECTION_HEIGHT + rows * (cell + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, names = ImageDraw.Draw(sheet), _names()

    pen.text((MARGIN, MARGIN), title, INK, _font(32))
    pen.text((MARGIN, MARGIN + 46), subtitle, QUIET, _font(17))
    y = MARGIN + TITLE_HEIGHT
    for column, head in enumerate(heads):
        middle = _left(column, cell) + cell // 2
        first, _, second = head.partition("\n")
        pen.text((middle, y + 14), first, INK, _font(17), anchor="ma")
        pen.text((middle, y + 38), second, QUIET, _font(14), anchor="ma")
    y += HEAD_HEIGHT
    for heading, section in sections.items():
        pen.line((MARGIN, y + 8, width - MARGIN, y + 8), RULE)
        pen.text((MARGIN, y + 18), heading, QUIET, _font(17))
        y += SECTION_HEIGHT
        for row in section:
            _label(sheet, pen, row, names.get(row.own_name), y, cell)
            for column, picture in enumerate(row.pictures):
                scaled = Image.fromarray(picture).resize((cell, cell), Image.Resampling.LANCZOS)
                sheet.paste(scaled, (_left(column, cell), y))
            y += cell + GAP
    return sheet


def _left(column: int, cell: int) -> int:
    return MARGIN + LABEL_WIDTH + column * (cell + GAP)


def _label(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, row: SheetRow, own_name: Image.Image | None, top: int, cell: int
) -> None:
    renderer = TextRenderer(sample=row.own_name)
    is_drawn = own_name is not None or (row.own_name != "" and renderer.draws(row.own_name))  # else boxes
    y = top + (cell - (64 if is_drawn else 30)) // 2
    size = next((size for size in (24, 20) if pen.textlength(row.name, _font(size)) < LABEL_WIDTH), 16)
    pen.text((MARGIN, y), row.name, INK, _font(size))
    if own_name:
        sheet.paste(QUIET, (MARGIN, y + 34), own_name)
    elif is_drawn:
        shortened = renderer.shorten(row.own_name, 20, LABEL_WIDTH - GAP)
        renderer.draw(sheet, MARGIN, y + 54, shortened, 20, QUIET)


def _names() -> dict[str, Image.Image]:
    """The languages' names in their own scripts, each a mask of half the size at which it was drawn."""
    with Image.open(NAMES_FILE) as strip:
        names = strip.info["names"].split("\n")
        masks = strip.convert("L")
    height = masks.height // len(names)
    return {
        name: masks.crop((0, number * height, masks.width, (number + 1) * height)).resize(
            (masks.width // 2, height // 2), Image.Resampling.LANCZOS
        )
        for number, name in enumerate(names)
    }


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
