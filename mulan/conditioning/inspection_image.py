"""An inspected prompt as an image: a card per window with a box for each piece, what is cut away, and the notes."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..images.text_drawing import Color, TextRenderer
from .inspection import InspectedWindow, Inspection, TokenBox, comparison, plural
from .tokenizer import PREFIX

WIDTH, MAX_HEIGHT = 1024, 2048
MARGIN, PAD, GAP = 32, 20, 16
INNER = WIDTH - 2 * MARGIN
PAPER, CARD, INK, QUIET, RULE = (246, 247, 249), (255, 255, 255), (28, 30, 34), (110, 114, 122), (214, 217, 223)
ROOM, FILLED, FRAME = (233, 235, 239), (64, 118, 214), (190, 194, 202)
LOST, LOST_CARD, NOTE, NOTE_CARD = (178, 42, 42), (255, 240, 239), (122, 84, 0), (255, 248, 226)
STRONGER, WEAKER = (196, 78, 0), (0, 104, 168)
# Words in turn; the second is for every other piece of one word.
SHADES = (
    ((219, 232, 253), (199, 218, 249)),
    ((221, 243, 226), (200, 233, 209)),
    ((253, 233, 214), (249, 219, 190)),
    ((236, 226, 250), (222, 206, 245)),
    ((253, 225, 233), (249, 205, 219)),
    ((216, 241, 243), (192, 230, 234)),
)
SCRIPT_COLORS = ((64, 118, 214), (44, 155, 96), (222, 128, 40), (138, 92, 200), (206, 72, 118), (30, 150, 160))

TITLE, HEADING, TEXT, SMALL, PIECE, UNDER = 30, 19, 17, 14, 21, 12
BOX_HEIGHT, BOX_PAD, ROW, WORD_GAP = 52, 7, 61, 9
MAX_BOX_WIDTH, MAX_DROPPED, MAX_NOTES = 300, 80, 12


def draw_inspection(inspection: Inspection, renderer: TextRenderer) -> Image.Image:
    """Draw an RGB image, `WIDTH` wide and at most `MAX_HEIGHT` high. Windows that do not fit are counted."""
    return _Page(inspection, renderer).draw()


class _Page:
    def __init__(self, inspection: Inspection, renderer: TextRenderer):
        self.inspection, self.renderer = inspection, renderer
        self.image = Image.new("RGB", (WIDTH, MAX_HEIGHT), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        self.y = MARGIN

    def draw(self) -> Image.Image:
        inspection = self.inspection
        self._head()
        tail = self._tail_height()
        for index, window in enumerate(inspection.windows):
            more = len(inspection.windows) - index
            lines = _wrapped(self._measured(self._window_boxes(window)))
            height = 2 * PAD + 46 + len(lines) * ROW
            if self.y + height + GAP + (40 if more > 1 else 0) + tail > MAX_HEIGHT:
                self._text(MARGIN, self.y + 20, f"… and {plural(more, 'window')} more", HEADING, QUIET)
                self.y += 40
                break
            self._window(index, window, lines, height)
        if inspection.merged or inspection.dropped:
            self._lost()
        if inspection.notes:
            self._notes()
        return self.image.crop((0, 0, WIDTH, min(MAX_HEIGHT, self.y - GAP + MARGIN)))

    # --- head -----------------------------------------------------------------------------------------------------

    def _head(self) -> None:
        inspection = self.inspection
        self._text(MARGIN, self.y + 26, inspection.family, TITLE, INK)
        side = "negative prompt" if inspection.negative else "prompt"
        prefix = f"behind “{PREFIX}”" if inspection.prefix else "without a prefix"
        self._text(MARGIN, self.y + 54, f"{side}, {prefix}, style {inspection.style}", TEXT, QUIET)
        self.y += 78
        windows = len(inspection.windows)
        tiles = [
            (str(inspection.tokens), "tokens of text"),
            (str(windows), f"window{'' if windows == 1 else 's'} of {inspection.capacity}"),
        ]
        if inspection.per_word:
            tiles.append((f"{inspection.per_word:.2f}", "tokens per word"))
        if inspection.per_character:
            tiles.append((f"{inspection.per_character:.2f}", "tokens per character"))
        width = (INNER - GAP * (len(tiles) - 1)) // len(tiles)
        for i, (value, label) in enumerate(tiles):
            left = MARGIN + i * (width + GAP)
            self._card(left, self.y, width, 84, CARD)
            self._text(left + PAD, self.y + 44, value, 32, INK)
            self._text(left + PAD, self.y + 69, label, SMALL, QUIET)
        self.y += 84 + GAP
        if inspection.scripts:
            self._scripts()

    def _scripts(self) -> None:
        """Draw a bar of the letters' scripts, and what the main one costs."""
        shown = self.inspection.scripts[: len(SCRIPT_COLORS)]
        self._card(MARGIN, self.y, INNER, 84 if self.inspection.sample else 60, CARD)
        left, whole = MARGIN + PAD, INNER - 2 * PAD
        total = sum(share for _, share in shown)
        x = float(left)
        for (_, share), color in zip(shown, SCRIPT_COLORS, strict=False):
            self.pen.rectangle(
                (round(x), self.y + 14, max(round(x), round(x + whole * share / total) - 2), self.y + 21), fill=color
            )
            x += whole * share / total
        x = left
        for (name, share), color in zip(shown, SCRIPT_COLORS, strict=False):
            self.pen.ellipse((x, self.y + 36, x + 9, self.y + 45), fill=color)
            x += 16 + self._text(x + 16, self.y + 46, f"{name} {share:.0%}", SMALL, INK) + 22
        self.y += 60
        if self.inspection.sample:
            self._text(left, self.y + 8, comparison(self.inspection.sample), SMALL, QUIET)
            self.y += 24
        self.y += GAP

    # --- windows --------------------------------------------------------------------------------------------------

    def _window(
        self, index: int, window: InspectedWindow, lines: list[list[tuple[int, TokenBox]]], height: int
    ) -> None:
        capacity, length = self.inspection.capacity, self.inspection.length
        self._card(MARGIN, self.y, INNER, height, CARD)
        left, right, top = MARGIN + PAD, MARGIN + INNER - PAD, self.y + PAD
        title = f"Window {index + 1}"
        width = self._text(left, top + 15, title, HEADING, INK)
        if window.after_break:
            self._text(left + width + 12, top + 15, "after BREAK", SMALL, QUIET)
        padding = length - len(self.inspection.prefix) - 2 - window.tokens
        filled = f"{window.tokens} of {capacity} tokens; {length} rows, {padding} of padding"
        self._text(right - self.renderer.width(filled, SMALL), top + 14, filled, SMALL, QUIET)
        bar = top + 28
        self.pen.rounded_rectangle((left, bar, right, bar + 6), 3, ROOM)
        if window.tokens:
            self.pen.rounded_rectangle(
                (left, bar, left + max(6, round((right - left) * window.tokens / capacity)), bar + 6), 3, FILLED
            )
        self._lines(lines, left, top + 50)
        self.y += height + GAP

    def _window_boxes(self, window: InspectedWindow) -> list[TokenBox]:
        """Return its text between the rows that every window has."""
        frame = self.inspection.frame
        return [_row("bos", frame.bos, -1), *self.inspection.prefix, *window.boxes, _row("eos", frame.eos, -3)]

    def _lines(self, lines: list[list[tuple[int, TokenBox]]], left: int, top: int, faded: bool = False) -> None:
        """Draw lines of boxes. Those of one word touch each other and alternate in shade."""
        shade, group = 0, None
        for index, line in enumerate(lines):
            x = left
            for position, (width, box) in enumerate(line):
                shade = shade + 1 if box.group == group else 0
                if position and _stands_apart(box, line[position - 1][1]):
                    x += WORD_GAP
                group = box.group
                color = CARD if box.group < 0 or faded else SHADES[box.group % len(SHADES)][shade % 2]
                self._box(x, top + index * ROW, width, box, color, faded)
                x += width + 1

    def _box(self, left: int, top: int, width: int, box: TokenBox, color: Color, faded: bool) -> None:
        special = box.group < 0 or box.is_literal
        edge = STRONGER if box.weight > 1 else WEAKER if box.weight < 1 else FRAME if special else None
        ink = LOST if faded else QUIET if box.group < 0 else INK
        self.pen.rectangle(
            (left, top, left + width - 1, top + BOX_HEIGHT - 1),
            CARD if special else color,
            edge or (RULE if faded else color),
            2 if box.weight != 1 else 1,
        )
        text = self.renderer.shorten(self._shown(box), PIECE, MAX_BOX_WIDTH - 2 * BOX_PAD)
        x = left + (width - self.renderer.width(text, PIECE)) // 2
        self._text(x, top + 26, text, PIECE, ink)
        if faded:
            self.pen.line((left + 4, top + 19, left + width - 5, top + 19), LOST)
        under = _under(box)
        self._text(
            left + (width - self.renderer.width(under, UNDER)) // 2,
            top + 47,
            under,
            UNDER,
            edge if edge and box.weight != 1 else QUIET,
        )

    def _shown(self, box: TokenBox) -> str:
        """Return the box's text; spaces alone are made visible."""
        if box.text.strip(" "):
            return box.text
        space = "␣" if self.renderer.draws("␣") else "_"
        return space if len(box.text) == 1 else f"{space}×{len(box.text)}"

    def _measured(self, boxes: Sequence[TokenBox]) -> list[tuple[int, TokenBox]]:
        """Return each box with its width."""
        return [
            (
                max(
                    20,
                    min(
                        MAX_BOX_WIDTH,
                        max(self.renderer.width(self._shown(box), PIECE), self.renderer.width(_under(box), UNDER))
                        + 2 * BOX_PAD,
                    ),
                ),
                box,
            )
            for box in boxes
        ]

    # --- what follows the windows ---------------------------------------------------------------------------------

    def _tail_height(self) -> int:
        """Return the height that must stay free below the windows."""
        lost = self._lost_lines() if self.inspection.merged or self.inspection.dropped else None
        height = 0 if lost is None else 2 * PAD + 34 + 26 * bool(self.inspection.merged) + len(lost) * ROW + GAP
        if self.inspection.notes:
            height += 2 * PAD + 24 * len(self._note_lines()) + GAP
        return height + MARGIN

    def _lost_lines(self) -> list[list[tuple[int, TokenBox]]]:
        return _wrapped(self._measured(self.inspection.dropped[:MAX_DROPPED]))

    def _lost(self) -> None:
        inspection, lines = self.inspection, self._lost_lines()
        more = len(inspection.dropped) - MAX_DROPPED
        height = 2 * PAD + 34 + 26 * bool(inspection.merged) + len(lines) * ROW
        self._card(MARGIN, self.y, INNER, height, LOST_CARD)
        left, top = MARGIN + PAD, self.y + PAD
        title = f"Cut away: {plural(inspection.dropped_tokens, 'token')}" if inspection.dropped else "Lost"
        self._text(left, top + 15, title + (f", {MAX_DROPPED} shown" if more > 0 else ""), HEADING, LOST)
        top += 34
        if inspection.merged:
            self._text(
                left,
                top + 14,
                self.renderer.shorten(
                    f"merged with the prefix's colon and lost: {inspection.merged}", TEXT, INNER - 2 * PAD
                ),
                TEXT,
                LOST,
            )
            top += 26
        self._lines(lines, left, top, faded=True)
        self.y += height + GAP

    def _note_lines(self) -> list[str]:
        lines = [line for note in self.inspection.notes for line in _folded(note, self.renderer, INNER - 2 * PAD - 20)]
        return lines if len(lines) <= MAX_NOTES else lines[: MAX_NOTES - 1] + ["…"]

    def _notes(self) -> None:
        lines = self._note_lines()
        height = 2 * PAD + 24 * len(lines)
        self._card(MARGIN, self.y, INNER, height, NOTE_CARD)
        for index, line in enumerate(lines):
            self._text(MARGIN + PAD, self.y + PAD + 17 + 24 * index, line, TEXT, NOTE)
        self.y += height + GAP

    def _text(self, left: float, baseline: int, text: str, size: int, color: Color) -> int:
        return self.renderer.draw(self.image, round(left), baseline, text, size, color)

    def _card(self, left: int, top: int, width: int, height: int, color: Color) -> None:
        self.pen.rounded_rectangle((left, top, left + width - 1, top + height - 1), 8, color, RULE)


def _row(text: str, token_id: int, group: int) -> TokenBox:
    """Return the box of a row that is not text; groups below 0 are drawn without color."""
    return TokenBox(text, (token_id,), 1.0, group, True, False, False)


def _under(box: TokenBox) -> str:
    """Return the weight, else the number of bytes, else the id."""
    if box.weight != 1:
        return f"×{box.weight:.4g}"
    if len(box.token_ids) > 1:
        return f"{len(box.token_ids)} bytes"
    return str(*box.token_ids)


def _stands_apart(box: TokenBox, before: TokenBox) -> bool:
    return box.starts_word or (box.group < 0) != (before.group < 0)


def _wrapped(boxes: list[tuple[int, TokenBox]]) -> list[list[tuple[int, TokenBox]]]:
    """Break boxes into lines; a word goes whole onto the next line where it fits one."""
    lines: list[list[tuple[int, TokenBox]]] = [[]]
    x, i, width = 0, 0, INNER - 2 * PAD
    while i < len(boxes):
        end = i + 1
        while end < len(boxes) and boxes[end][1].group == boxes[i][1].group and not boxes[end][1].starts_word:
            end += 1
        word = boxes[i:end]
        gap = WORD_GAP if lines[-1] and _stands_apart(word[0][1], lines[-1][-1][1]) else 0
        needed = sum(w + 1 for w, _ in word)
        if lines[-1] and x + gap + needed > width:
            lines.append([])
            x, gap = 0, 0
        x += gap
        for w, box in word:
            if lines[-1] and x + w > width:
                lines.append([])
                x = 0
            lines[-1].append((w, box))
            x += w + 1
        i = end
    return lines if lines[-1] else []


def _folded(text: str, renderer: TextRenderer, width: int) -> list[str]:
    """Break a note into lines, the first behind a dot."""
    lines, line = [], "·"
    for word in text.split():
        word = renderer.shorten(word, TEXT, width)
        if renderer.width(f"{line} {word}", TEXT) > width:
            lines.append(line)
            line = "  " + word
        else:
            line += " " + word
    return lines + [line]
