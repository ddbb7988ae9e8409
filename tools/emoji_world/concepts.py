"""The things of the emoji world: their pictures, and their names in 113 languages.

Names and keywords are those of Unicode CLDR (data/LICENSE-names.txt), which speakers of each language vetted; pictures
are Noto Emoji's (data/LICENSE-pictures.txt). `build_data.py` makes both files.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from mulan_nodes.mulan.images.unicode_text import script

DATA = Path(__file__).with_name("data")
NAMES, PICTURES = DATA / "names.json.xz", DATA / "pictures.png"
PICTURE_SIDE, COLUMNS = 128, 16  # of the sheet

CHARACTERS = (
    *"🦁🐘🦓🐧🦉🐸🐙🦀🦋🐌🐼🐓🦒🐬🐝🐞🦊🐨🐍🐊🦈🐪🦆🐢🐟🐻🐱🐶🐷🐵🦇🐦",
    *"🌵🌴🌻🌹🍄🍁🍇🍉🍋🍌🍍🍓🥕🍔🍕🍩🎂🌷🌲🍎🌽🍆🥑🍦🍿🧀🍒🍑🥝🥦🌭🌸🥐🍪🥨🍟🍐🍀🌶🍭",
    *"🚗🚜✈⛵🏠🏰🌋🚒🚁🛸🚂🚀🚌☀🌙🌈🔥☂❄⚡💧",
    *"⚽🎈🎁🎸👕🔑🏀🎱🎯🎄🎃🏆👗🎩👑👟💎🔔🔨💡☎📕✏🚪⚓🍺🏈🎹📷🎒💄🔒🛡🤖👽❤⏰",
)
HELD_OUT_LANGUAGES = ("fo", "tg", "shn")  # no stage of the training sees them
HELD_OUT = frozenset("🦊🐊🌷🍋🥕🍦🚒🏰👗🔔🍺🐞")  # the base draws them; the adapter never sees them in training


@dataclass(frozen=True)
class Language:
    """The names of all things in one language, None where it has none, and words that describe each.

    name, own_name: the language's, in English and in itself.
    """

    code: str
    name: str
    own_name: str
    names: tuple[str | None, ...]
    keywords: tuple[tuple[str, ...], ...]


@cache
def languages() -> dict[str, Language]:
    """All 113, by code."""
    table = json.loads(lzma.decompress(NAMES.read_bytes()))
    return {
        code: Language(
            code, entry["name"], entry["own_name"], tuple(entry["names"]), tuple(map(tuple, entry["keywords"]))
        )
        for code, entry in table.items()
    }


def trained_languages() -> tuple[str, ...]:
    """The codes of the 110 that the text encoder learns; English first."""
    return ("en", *(code for code in languages() if code not in ("en", *HELD_OUT_LANGUAGES)))


def english(thing: int) -> str:
    """The English name of a thing, by its place in `CHARACTERS`."""
    name = languages()["en"].names[thing]
    assert name is not None
    return name


def script_of(code: str) -> str:
    """The script that most letters of a language's names are of, as Unicode calls it; "Kana" for both of Japan's."""
    letters = [script(letter) for name in languages()[code].names if name for letter in name if letter.isalpha()]
    kind = max(set(letters), key=letters.count)
    return "Kana" if kind in ("Hiragana", "Katakana") else kind


def language_of_script(codes: Iterable[str]) -> dict[str, str]:
    """The first language of each script that the languages are written in."""
    return {script_of(code): code for code in reversed(list(codes))}


SEEN = tuple(place for place, character in enumerate(CHARACTERS) if character not in HELD_OUT)


@cache
def glyphs() -> list[Image.Image]:
    """The pictures, RGBA, each cut to its outline and centred in a square of 128 pixels."""
    sheet = Image.open(PICTURES).convert("RGBA")
    cut = []
    for place in range(len(CHARACTERS)):
        row, column = divmod(place, COLUMNS)
        left, top = column * PICTURE_SIDE, row * PICTURE_SIDE
        glyph = sheet.crop((left, top, left + PICTURE_SIDE, top + PICTURE_SIDE))
        glyph = glyph.crop(glyph.getbbox())
        side = max(glyph.size)
        square = Image.new("RGBA", (side, side))
        square.paste(glyph, ((square.width - glyph.width) // 2, (square.height - glyph.height) // 2))
        cut.append(square.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS))
    return cut


def glyph_array(thing: int) -> np.ndarray:
    """A picture as float32 [128, 128, 4] in 0..1, colours multiplied by alpha."""
    pixels = np.asarray(glyphs()[thing], np.float32) / 255
    return np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], axis=-1)
