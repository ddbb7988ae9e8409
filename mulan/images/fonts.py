"""Fonts of the machine, by the characters they draw. Files are only read, and only as far as the search must go."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = frozenset((".ttf", ".otf", ".ttc", ".otc"))
_MAX_TABLE_SIZE = 8 * 2**20

# Even, upright faces of whole scripts, the best first, as systems name their files. All others come behind, plainer
# ones first.
_PREFERRED = (
    "notosans-",
    "notosanscjk-regular",
    "segoeui.",
    "helveticaneue",
    "notosans",
    "notonaskharabic-regular",
    "noto",
    "dejavusans.",
    "arial.",
    "tahoma.",
    "msyh.",
    "msjh.",
    "yugothr.",
    "meiryo.",
    "malgun.",
    "nirmala",
    "leelawui.",
    "ebrima.",
    "gadugi.",
    "mmrtext.",
    "himalaya.",
    "seguisym.",
    "seguihis.",
    "pingfang",
    "hiragino",
    "applesdgothicneo",
    "geezapro",
    "kohinoor",
    "thonburi",
    "arial unicode",
    "apple symbols",
    "droidsansfallback",
    "wqy",
    "unifont",
)
_COLORED = ("notocoloremoji", "seguiemj.", "apple color emoji", "twemoji", "joypixels")
_OTHER_STYLES = (
    "bold",
    "italic",
    "oblique",
    "light",
    "thin",
    "black",
    "medium",
    "condensed",
    "narrow",
    "serif",
    "mono",
    "display",
    "slanted",
    "unjoined",
    "rashi",
    "traditional",
    "script",
)
_DRAWS_NOTHING = ("lastresort", "adobeblank")


def system_folders() -> tuple[Path, ...]:
    """Return where Linux, Windows and macOS keep fonts, the machine's and the user's."""
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home
        home = Path("/")
    return (
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
        home / ".local/share/fonts",
        home / ".fonts",
        Path("C:/Windows/Fonts"),
        home / "AppData/Local/Microsoft/Windows/Fonts",
        Path("/System/Library/Fonts"),
        Path("/Library/Fonts"),
        home / "Library/Fonts",
    )


class CharacterMap:
    """A font file's table of which glyph draws a character (OpenType ``cmap``, formats 4 and 12)."""

    def __init__(self, table: bytes):
        """Read the table. Raises ValueError or struct.error where it has neither format for Unicode."""
        subtables = {}
        for i in range(_u16(table, 2)):
            platform, encoding, offset = struct.unpack_from(">HHI", table, 4 + 8 * i)
            if platform == 0 or (platform == 3 and encoding in (1, 10)):
                subtables[_u16(table, offset)] = offset
        self._format = 12 if 12 in subtables else 4
        if self._format not in subtables:
            raise ValueError("this font has no table of Unicode characters")
        self._table, self._start = table, subtables[self._format]
        self._count = (
            struct.unpack_from(">I", table, self._start + 12)[0]
            if self._format == 12
            else _u16(table, self._start + 6) // 2
        )

    def __contains__(self, character: str) -> bool:
        try:
            return (self._glyph_12 if self._format == 12 else self._glyph_4)(ord(character)) != 0
        except struct.error:  # the table is cut short
            return False

    def _glyph_12(self, code: int) -> int:
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            first, last, glyph = struct.unpack_from(">III", self._table, self._start + 16 + 12 * middle)
            if code > last:
                low = middle + 1
            elif code < first:
                high = middle
            else:
                return glyph + code - first
        return 0

    def _glyph_4(self, code: int) -> int:
        table, count = self._table, self._count
        ends = self._start + 14
        starts, deltas, ranges = ends + 2 * count + 2, ends + 4 * count + 2, ends + 6 * count + 2
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if _u16(table, ends + 2 * middle) < code:
                low = middle + 1
            else:
                high = middle
        if low == count or _u16(table, starts + 2 * low) > code:
            return 0
        delta, distance = _u16(table, deltas + 2 * low), _u16(table, ranges + 2 * low)
        glyph = code
        if distance:
            glyph = _u16(table, ranges + 2 * low + distance + 2 * (code - _u16(table, starts + 2 * low)))
            if glyph == 0:
                return 0
        return (glyph + delta) & 0xFFFF


@dataclass(frozen=True)
class FontFile:
    """A font that can be used, and the characters it draws."""

    path: Path
    characters: CharacterMap
    colored: bool  # bitmaps or layers of colors: emoji
    faces: int  # of a collection, which has the same characters in each


def open_font(path: Path) -> FontFile | None:
    """Open the font of a file (of a collection, its first); None where it cannot be used."""
    try:
        with open(path, "rb") as file:
            tag, faces, directory = file.read(4), 1, 0
            if tag == b"ttcf":
                _, faces, directory = struct.unpack(">III", file.read(12))
            file.seek(directory + 4)
            count = _u16(file.read(8), 0)
            tables = {}
            for _ in range(count):
                name, _, offset, length = struct.unpack(">4sIII", file.read(16))
                tables[name] = offset, length
            offset, length = tables[b"cmap"]
            file.seek(offset)
            colored = any(name in tables for name in (b"CBDT", b"sbix", b"COLR"))
            return FontFile(path, CharacterMap(file.read(min(length, _MAX_TABLE_SIZE))), colored, faces)
    except (OSError, ValueError, KeyError, struct.error):
        return None


class Fonts:
    """The fonts of some folders, opened one after another as characters ask for them."""

    def __init__(self, folders: Iterable[Path] | None = None):
        self._waiting = _font_files(system_folders() if folders is None else folders)
        self._open: list[FontFile] = []
        self._fonts_of: dict[tuple[str, bool], FontFile | None] = {}

    def font_for(self, characters: str, colored: bool = False) -> FontFile | None:
        """Return the best font with all these characters; a colored one only where `colored` asks for it, and then
        first.
        """
        key = characters, colored
        if key not in self._fonts_of:
            font = self._search(characters, True) if colored else None
            self._fonts_of[key] = font or self._search(characters, False)
        return self._fonts_of[key]

    def _search(self, characters: str, colored: bool) -> FontFile | None:
        for font in self._all():
            if font.colored == colored and all(character in font.characters for character in characters):
                return font
        return None

    def _all(self) -> Iterator[FontFile]:
        yield from self._open
        for path in self._waiting:
            font = open_font(path)
            if font is not None:
                self._open.append(font)
                yield font


def _font_files(folders: Iterable[Path]) -> Iterator[Path]:
    """List all font files, the best first. Folders are searched when the first file is asked for."""
    found = []
    for folder in folders:
        try:
            found += [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
        except OSError:
            continue
    yield from sorted((path for path in found if not path.name.lower().startswith(_DRAWS_NOTHING)), key=_order)


def _order(path: Path) -> tuple:
    """Return a key that sorts even, upright, preferred ones first, the same on every machine with these fonts."""
    name = path.name.lower()
    if name.startswith(_COLORED):
        return -1, 0, name
    rank = next((i for i, start in enumerate(_PREFERRED) if name.startswith(start)), len(_PREFERRED))
    return sum(style in name for style in _OTHER_STYLES), rank, name


def _u16(data: bytes, offset: int) -> int:
    return struct.unpack_from(">H", data, offset)[0]
