"""Text of any script on an image, with the machine's fonts.

Characters that no font draws stand as their code points in boxes, as in browsers. Line breaks are drawn as spaces, half
characters as U+FFFD, and of a long line only the beginning.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from ..boundary.texts import clean_text
from .fonts import CharacterMap, FontFile, Fonts
from .unicode_text import JOINER, clusters, is_emoji, is_invisible, is_mark, is_right_to_left, is_selector, script

Color = tuple[int, int, int]

# Heights as shares of the size: what capitals and Devanagari's upper line need, what descenders need, boxes of code
# points.
ASCENT, DESCENT, BOX = 0.95, 0.35, 1.0
_STRIKES = (109, 136, 160, 128, 96, 64, 40, 32, 20)  # sizes in which colored bitmap fonts come
_MAX_LENGTH = 500  # characters of one line that are drawn
_DOTTED_CIRCLE = "\u25cc"
_BREAKS = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029")
_HAN_FACES = {"Hiragana": " JP", "Katakana": " JP", "Hangul": " KR"}


@dataclass(frozen=True)
class _Run:
    """Neighbors of one font: a file's, Pillow's own, or none (boxes)."""

    text: str
    font: FontFile | None
    own: bool  # Pillow's own font


class TextRenderer:
    """Draws lines of text.

    `sample` is a text of the language to come: Chinese, Japanese and Korean draw some characters differently.
    """

    def __init__(self, fonts: Fonts | None = None, sample: str = ""):
        self._fonts = fonts or Fonts()
        scripts = {script(character) for character in set(sample)}
        self._han_face = next((face for name, face in _HAN_FACES.items() if name in scripts), " SC")
        self._own_characters = _own_characters()
        self._sized: dict[tuple[Path | None, int], tuple[ImageFont.FreeTypeFont, float]] = {}

    def width(self, text: str, size: int) -> int:
        """Return the pixels that `draw` takes."""
        return round(sum(self._run_width(run, size) for run in self._runs(text)))

    def draw(self, image: Image.Image, left: int, baseline: int, text: str, size: int, color: Color) -> int:
        """Draw one line on an RGB image and return its width.

        A line that begins right to left has its runs in that order.
        """
        x = float(left)
        text = _one_line(text)
        runs = self._runs(text)
        for run in reversed(runs) if is_right_to_left(text) else runs:
            x += self._draw_run(image, x, baseline, run, size, color)
        return round(x - left)

    def draws(self, text: str) -> bool:
        """Return whether all characters have a font."""
        return all(run.own or run.font for run in self._runs(text))

    def shorten(self, text: str, size: int, width: int) -> str:
        """Replace the end of a text by "…" where it is wider than `width` pixels."""
        text = _one_line(text)
        if self.width(text, size) <= width:
            return text
        pieces = clusters(text)
        low, high = 0, len(pieces)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if self.width("".join(pieces[:middle]) + "…", size) <= width else (low, middle - 1)
            )
        return "".join(pieces[:low]) + "…"

    def _runs(self, text: str) -> list[_Run]:
        runs: list[_Run] = []
        text = _one_line(text)
        if text and is_mark(text[0]) and self._font_of(_DOTTED_CIRCLE + text[0]) is not None:
            text = _DOTTED_CIRCLE + text
        for cluster in clusters(text):
            needed = "".join(c for c in cluster if c != JOINER and not is_selector(c)) or cluster
            own = all(character in self._own_characters for character in needed)
            font = None if own else self._font_of(needed, is_emoji(cluster))
            if not own and font is None and len(needed) > 1:  # no font has all of it: each character for itself
                runs += [
                    _Run(character, self._font_of(character), character in self._own_characters) for character in needed
                ]
            elif runs and (runs[-1].font, runs[-1].own) == (font, own) and (own or font):
                runs[-1] = _Run(runs[-1].text + cluster, font, own)
            else:
                runs.append(_Run(cluster, font, own))
        return runs

    def _font_of(self, characters: str, colored: bool = False) -> FontFile | None:
        if any(is_invisible(character) for character in characters):
            return None
        return self._fonts.font_for(characters, colored)

    def _run_width(self, run: _Run, size: int) -> float:
        if not (run.own or run.font):
            return _box_size(run.text, size)[0] + size / 8
        font, scale = self._at_size(run.font, size)
        text = _in_order(run.text)
        # some fonts set a lone mark behind its circle
        return max(font.getlength(text), font.getbbox(text, anchor="ls")[2]) * scale

    def _draw_run(self, image: Image.Image, x: float, baseline: int, run: _Run, size: int, color: Color) -> float:
        if not (run.own or run.font):
            self._draw_box(image, round(x), baseline, run.text, size, color)
        else:
            font, scale = self._at_size(run.font, size)
            if run.font and run.font.colored:
                _draw_colored(image, round(x), baseline, run.text, font, scale, size)
            else:
                ImageDraw.Draw(image).text((x, baseline), _in_order(run.text), color, font, anchor="ls")
        return self._run_width(run, size)

    def _draw_box(self, image: Image.Image, left: int, baseline: int, text: str, size: int, color: Color) -> None:
        """Draw a frame with the code point in two rows of hexadecimal digits."""
        width, height = _box_size(text, size)
        top = baseline - round(0.8 * height)
        pen = ImageDraw.Draw(image)
        pen.rectangle((left + 1, top, left + width - 2, top + height - 1), outline=color)
        digits = _hexadecimal(text)
        font, half = ImageFont.load_default(_digits_size(size)), len(digits) // 2
        for row, part in enumerate((digits[:half], digits[half:])):
            middle = top + height * (0.27 + 0.46 * row)
            pen.text((left + (width - 1) / 2, middle), part, color, font, anchor="mm")

    def _at_size(self, file: FontFile | None, size: int) -> tuple[ImageFont.FreeTypeFont, float]:
        """Return the font, and the factor of its measures: bitmap fonts come in few sizes."""
        key = (file.path if file else None), size
        if key not in self._sized:
            self._sized[key] = (_own_font(size), 1.0) if file is None else self._load(file, size)
        return self._sized[key]

    def _load(self, file: FontFile, size: int) -> tuple[ImageFont.FreeTypeFont, float]:
        for strike in (size, *_STRIKES):
            try:
                font = ImageFont.truetype(file.path, strike)
            except OSError:
                continue
            if file.faces > 1 and "CJK" in str(font.getname()[0]):
                font = next(
                    (
                        face
                        for face in (ImageFont.truetype(file.path, strike, index) for index in range(file.faces))
                        if str(face.getname()[0]).endswith(self._han_face)
                    ),
                    font,
                )
            return font, size / strike if file.colored and strike != size else 1.0
        return _own_font(size), 1.0


def _one_line(text: str) -> str:
    """Return what is drawn of a text; the same for what this returned."""
    line = "".join(" " if character in _BREAKS else character for character in clean_text(text[: 2 * _MAX_LENGTH]))
    return line if len(line) <= _MAX_LENGTH else line[: _MAX_LENGTH - 1] + "…"


def _own_font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "what Pillow gives for a size"  # noqa: S101
    return font


def _own_characters() -> CharacterMap | frozenset[str]:
    """Return what Pillow's own font draws."""
    data = getattr(ImageFont.load_default(16), "path", None)
    if isinstance(data, io.BytesIO):
        raw = data.getvalue()
        try:
            tables = (
                struct.unpack_from(">4sIII", raw, 12 + 16 * i) for i in range(struct.unpack_from(">H", raw, 4)[0])
            )
            return next(
                CharacterMap(raw[offset : offset + length]) for name, _, offset, length in tables if name == b"cmap"
            )
        except (struct.error, ValueError, StopIteration):
            pass
    return frozenset(map(chr, range(32, 127)))


def _in_order(text: str) -> str:
    """Reverse right-to-left text where Pillow has no Raqm: it then draws letters from left to right in the order "
    "given.
    """
    return text if features.check("raqm") or not is_right_to_left(text) else "".join(reversed(clusters(text)))


def _draw_colored(
    image: Image.Image, left: int, baseline: int, text: str, font: ImageFont.FreeTypeFont, scale: float, size: int
) -> None:
    box = font.getbbox(text, anchor="ls")
    canvas = Image.new("RGBA", (max(1, int(box[2] - box[0])), max(1, int(box[3] - box[1]))))
    ImageDraw.Draw(canvas).text((-box[0], -box[1]), text, font=font, embedded_color=True, anchor="ls")
    if scale != 1.0:
        canvas = canvas.resize(
            (max(1, round(canvas.width * scale)), max(1, round(canvas.height * scale))), Image.Resampling.LANCZOS
        )
    top = baseline + round(box[1] * scale) if scale == 1.0 else baseline - round(0.38 * size + canvas.height / 2)
    image.paste(canvas, (left, top), canvas)


def _hexadecimal(text: str) -> str:
    """Return the digits of the first code point, an even number of them: 00E9, 01F600."""
    digits = f"{ord(text[0]):04X}"
    return digits if len(digits) % 2 == 0 else "0" + digits


def _digits_size(size: int) -> int:
    return max(7, round(size * 0.42))


def _box_size(text: str, size: int) -> tuple[int, int]:
    """Return width and height of the frame around a code point."""
    columns = len(_hexadecimal(text)) // 2
    return round(_digits_size(size) * 0.66 * columns) + 6, max(2 * _digits_size(size) + 3, round(BOX * size))
