"""What the inspector says and draws, on the golden tokenizer, with the fonts of this machine, with one of our own, and
with none.
"""

from __future__ import annotations

import logging
import struct
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from mulan_nodes.mulan.conditioning.families import SD15
from mulan_nodes.mulan.conditioning.inspection import MANY_WINDOWS, MAX_WINDOWS, format_report, inspect_prompt, summary
from mulan_nodes.mulan.conditioning.inspection_image import MAX_HEIGHT, PAPER, WIDTH, draw_inspection
from mulan_nodes.mulan.conditioning.prompt_tokenizer import PromptTokenizer
from mulan_nodes.mulan.conditioning.tokenizer import InternVLTokenizer
from mulan_nodes.mulan.images import unicode_text
from mulan_nodes.mulan.images.fonts import Fonts, open_font
from mulan_nodes.mulan.images.text_drawing import TextRenderer

MODEL = Path(__file__).resolve().parents[1] / "parity" / "goldens" / "mulan" / "tokenizer" / "tokenizer.model"


@pytest.fixture(scope="module")
def tokenizer() -> InternVLTokenizer:
    return InternVLTokenizer(MODEL.read_bytes())


@pytest.fixture(scope="module")
def default(tokenizer) -> PromptTokenizer:
    return PromptTokenizer(tokenizer, SD15, "default")


@pytest.fixture(scope="module")
def upstream(tokenizer) -> PromptTokenizer:
    return PromptTokenizer(tokenizer, SD15, "upstream")


# --- data and text ---


def test_a_report(default):
    """Stable to the letter: people compare reports."""
    assert (
        format_report(inspect_prompt(default, "a (red:1.3) cat BREAK 𓀀 ሰማ embedding:Bad"))
        == """\
Stable Diffusion 1.5, prompt, style default, prefix summarize:
14 tokens of text in 2 windows of 80 rows, 75 of them for text
2.80 tokens per word, 1.40 per character; Latin 70%, Ethiopic 20%, Egyptian Hieroglyphs 10%

window 1: 3 of 75 tokens
a ▁red×1.3 ▁cat

window 2 (BREAK): 11 of 75 tokens
𓀀[4] ▁ ሰ[3] ማ[3]

note: taken out, textual inversions are made for CLIP: embedding:Bad
note: 3 characters not in the vocabulary: read byte by byte
note: 2 windows: each is encoded on its own, their contexts follow one another"""
    )


def test_boxes_hold_the_prompt_s_tokens(default):
    text = "1girl, a (red:1.3) house 𓀀𓀁 по-русски, 红色的城堡 " * 8
    inspection = inspect_prompt(default, text)
    ids = [id for window in inspection.windows for box in window.boxes for id in box.token_ids]
    assert ids == [token.piece.id for window in default.tokenize(text).windows for token in window]
    assert [window.tokens for window in inspection.windows] == [
        sum(len(box.token_ids) for box in window.boxes) for window in inspection.windows
    ]
    assert {box.text for window in inspection.windows for box in window.boxes if box.is_bytes} >= {"𓀀", "𓀁"}


def test_groups_are_words_and_pieces_where_none_are_written(default):
    boxes = inspect_prompt(default, "a yellow house 红色的城堡").windows[0].boxes
    groups = [
        "".join(box.text for box in boxes if box.group == group) for group in sorted({box.group for box in boxes})
    ]
    assert groups[:3] == ["a", "yellow", "house"] and len(groups) > 4


def test_what_upstream_cuts_away_is_told_exactly(upstream):
    text = "//example.org " + "a red house,  bright " * 30
    inspection = inspect_prompt(upstream, text)
    kept = (
        "".join(token.piece.text for token in upstream.tokenize(text).windows[0])
        .replace("▁", " ")
        .replace("<0x2C>", ",")
    )
    assert inspection.merged == "//" and inspection.merged + kept + inspection.dropped_text == text
    written = format_report(inspection)
    assert repr(inspection.dropped_text) in written and "lost to the prefix's colon: '//'" in written
    assert sum(len(box.token_ids) for box in inspection.dropped) == inspection.dropped_tokens


@pytest.mark.parametrize("before", range(4))
def test_a_character_that_upstream_cuts_in_two_is_lost_whole(upstream, before):
    text = "a" + " a" * (70 + before) + " 𓀀𓀁𓀂"
    assert inspect_prompt(upstream, text).dropped_text in ("𓀀𓀁𓀂", "𓀁𓀂", "𓀂")


def test_the_negative_side_has_no_prefix(default):
    assert inspect_prompt(default, "a cat").prefix and not inspect_prompt(default, "a cat", negative=True).prefix
    assert (
        "negative" in summary(inspect_prompt(default, "a cat", negative=True))[0]
        and "no prefix" in summary(inspect_prompt(default, "a cat", negative=True))[0]
    )
    always = PromptTokenizer(default.tokenizer, replace(SD15, bare_negative=False), "default")
    assert inspect_prompt(always, "a cat", negative=True).prefix


@pytest.mark.parametrize(
    "text, scripts, words, language",
    [
        ("a red house", ["Latin"], 3, None),
        ("красный дом", ["Cyrillic"], 2, "Russian"),
        ("红色的城堡", ["Han"], None, "Chinese"),
        ("青空と白い雲", ["Han", "Hiragana"], None, "Japanese"),
        ("빨간 집", ["Hangul"], 2, "Korean"),
        ("بيت أحمر", ["Arabic"], 2, "Arabic"),
        ("लाल घर", ["Devanagari"], 2, "Hindi"),
        ("บ้านสีแดง", ["Thai"], None, "Thai"),
        ("ቀይ ቤት", ["Ethiopic"], 2, "Amharic"),
        ("12 !? 😀", [], 1, None),
    ],
)
def test_scripts_words_and_the_sentence_to_compare(default, text, scripts, words, language):
    inspection = inspect_prompt(default, text)
    assert [name for name, _ in inspection.scripts] == scripts and inspection.words == words
    assert (inspection.sample.language if inspection.sample else None) == language
    assert (
        inspection.characters == len("".join(text.split()))
        and inspection.per_character == inspection.tokens / inspection.characters
    )
    assert inspection.per_word == (inspection.tokens / words if words else None)
    if inspection.sample:
        assert inspection.sample.tokens > 0 and inspection.sample.english > 0


NOTES = {
    "": "the prompt is empty",
    "(a": "1 bracket without a partner",
    "a <unk> b": "<unk> is masked",
    "a </s> [PAD]": "act as such: </s>",
    "(红色：1.3)": "full-width",
    "(a:1e6)": "limited",
    "\ud800": "1 lone surrogate",
}


@pytest.mark.parametrize("text", NOTES)
def test_a_note_for_what_may_surprise(default, text):
    assert any(NOTES[text] in note for note in inspect_prompt(default, text).notes)


def test_a_plain_prompt_has_no_notes(default, upstream):
    assert (
        not inspect_prompt(default, "a (red:1.2) house by the river").notes
        and not inspect_prompt(upstream, "a red house").notes
    )


def test_upstream_says_what_it_reads_as_text(upstream):
    notes = " ".join(inspect_prompt(upstream, "a (red:1.2) BREAK embedding:x").notes)
    assert "brackets are text" in notes and "BREAK is text" in notes and "embedding: is text" in notes


def test_a_long_prompt_has_a_short_report(default):
    inspection = inspect_prompt(default, "a red house, " * 3000)
    assert len(inspection.windows) > MAX_WINDOWS > MANY_WINDOWS
    assert f"... and {len(inspection.windows) - MAX_WINDOWS} windows more" in format_report(inspection)


# --- pictures ---


PICTURES = {
    "empty": "",
    "mixed": "1girl (red:1.3) BREAK 红色 قطة नीला ดาว ቤት 😀👨‍👩‍👧 <unk> \n\0\u200b \u0301",
    "long": "红色的城堡坐落在山上，" * 2000,
    "one piece": " " * 5000 + "x" * 5000,
    "notes": "embedding:" + "y" * 500 + " <s> ( ",
}


@pytest.mark.parametrize("fonts", ["the machine's", "none"])
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_stays_in_bounds(default, upstream, name, fonts):
    for prompts in (default, upstream):
        before = time.process_time()
        picture = draw_inspection(
            inspect_prompt(prompts, PICTURES[name]),
            TextRenderer(Fonts([]) if fonts == "none" else None, PICTURES[name]),
        )
        assert time.process_time() - before < 6
        assert picture.mode == "RGB" and picture.width == WIDTH and 200 < picture.height <= MAX_HEIGHT
        pixels = np.asarray(picture)
        for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
            assert (edge == PAPER).all(), "something is drawn over the margin"
        assert (pixels != PAPER).any(axis=-1).mean() > 0.3


def test_a_piece_wider_than_a_box_is_shortened(default):
    inspection = inspect_prompt(default, "a cat")
    wide = replace(inspection.windows[0].boxes[0], text="W" * 400)
    pixels = np.asarray(
        draw_inspection(
            replace(inspection, windows=[replace(inspection.windows[0], boxes=[wide])]), TextRenderer(Fonts([]))
        )
    )
    assert (pixels[:, -8:] == PAPER).all()


def test_weights_cuts_and_notes_are_seen(default, upstream):
    """Each changes the picture in its colour."""
    from mulan_nodes.mulan.conditioning.inspection_image import LOST, LOST_CARD, NOTE_CARD, STRONGER, WEAKER

    def colours(prompts, text):
        return {
            color
            for _, color in draw_inspection(inspect_prompt(prompts, text), TextRenderer(Fonts([]))).getcolors(1 << 20)
        }

    plain = colours(default, "a red house")
    assert not plain & {STRONGER, WEAKER, LOST, LOST_CARD, NOTE_CARD}
    assert STRONGER in colours(default, "a (red:1.3) house") and WEAKER in colours(default, "a (red:0.7) house")
    assert {LOST, LOST_CARD} <= colours(upstream, "a red house, " * 40) and NOTE_CARD in colours(default, "(a")


# --- fonts ---


def cmap_font(path: Path, characters: str, fmt: int) -> Path:
    """A font file of nothing but a table of characters."""
    codes = sorted(map(ord, characters))
    if fmt == 12:
        groups = b"".join(struct.pack(">III", code, code, number + 1) for number, code in enumerate(codes))
        subtable, encoding = struct.pack(">HHIII", 12, 0, 16 + len(groups), 0, len(codes)) + groups, 10
    else:
        ends = [*codes, 0xFFFF]
        deltas = [(number + 1 - code) & 0xFFFF for number, code in enumerate(codes)] + [1]
        rows = [ends, ends, deltas, [0] * len(ends)]
        packed = [struct.pack(f">{len(row)}H", *row) for row in rows]
        body = packed[0] + b"\0\0" + b"".join(packed[1:])
        subtable, encoding = struct.pack(">7H", 4, 14 + len(body), 0, 2 * len(ends), 0, 0, 0) + body, 1
    table = struct.pack(">HHHHI", 0, 1, 3, encoding, 12) + subtable
    path.write_bytes(
        struct.pack(">IHHHH", 0x10000, 1, 0, 0, 0) + struct.pack(">4sIII", b"cmap", 0, 28, len(table)) + table
    )
    return path


@pytest.mark.parametrize("fmt", [4, 12])
def test_a_font_says_which_characters_it_draws(tmp_path, fmt):
    font = open_font(cmap_font(tmp_path / "a.ttf", "aй猫" + ("𓀀" if fmt == 12 else ""), fmt))
    assert [character in font.characters for character in "aй猫bи狗"] == [True, True, True, False, False, False]
    assert ("𓀀" in font.characters) == (fmt == 12)


def test_pillow_s_own_font_agrees_with_what_it_draws():
    """The table of characters against the drawn shapes: a character that is missing looks like one that cannot "
    "exist."""
    own, font = TextRenderer(Fonts([])), ImageFont.load_default(40)
    missing = bytes(font.getmask("\U0010ffff"))
    for character in "aZ09,.;:!?()[]<>|_…·×":
        assert own.draws(character) == (bytes(font.getmask(character)) != missing), character
    assert not own.draws("猫") and not own.draws("я")


def test_the_best_font_is_taken(tmp_path):
    for name in ("NotoSerifX-Regular.ttf", "NotoSansX-Bold.ttf", "NotoSansX-Regular.ttf", "Zzz.ttf"):
        cmap_font(tmp_path / name, "йя", 4)
    cmap_font(tmp_path / "Rare.ttf", "ѫ", 12)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "broken.ttf").write_bytes(b"\0\1\0\0\0\x09")
    (tmp_path / "sub" / "empty.otf").write_bytes(b"")
    fonts = Fonts([tmp_path, tmp_path / "nowhere"])
    assert fonts.font_for("й").path.name == "NotoSansX-Regular.ttf" and fonts.font_for("ѫ").path.name == "Rare.ttf"
    assert fonts.font_for("йѫ") is None and fonts.font_for("猫") is None


def test_a_font_that_cannot_be_drawn_with_is_no_failure(tmp_path):
    """It has a table of characters and no shapes."""
    cmap_font(tmp_path / "NotoSans-Regular.ttf", "я", 4)
    picture = Image.new("RGB", (80, 60), "white")
    assert TextRenderer(Fonts([tmp_path])).draw(picture, 10, 40, "я", 20, (0, 0, 0)) > 0


# --- lettering ---


def inked(letters: TextRenderer, text: str, size: int = 24) -> tuple[np.ndarray, int]:
    """The pixels that are not white, and the width that was told."""
    picture = Image.new("RGB", (700, 80), "white")
    width = letters.draw(picture, 20, 50, text, size, (0, 0, 0))
    return (np.asarray(picture) < 128).any(axis=-1), width


@pytest.mark.parametrize("fonts", ["the machine's", "none"])
@pytest.mark.parametrize(
    "text", ["house", "дом", "城堡", "بيت أحمر", "नीला घर", "ที่", "ቤት", "😀", "\n\0", "\u0301", "mixed 红 بيت ቤት"]
)
def test_any_text_is_drawn_where_it_says(text, fonts):
    letters = TextRenderer(Fonts([]) if fonts == "none" else None)
    ink, width = inked(letters, text)
    assert ink.any() and abs(width - letters.width(text, 24)) <= 1
    columns = np.flatnonzero(ink.any(axis=0))
    assert columns[0] >= 14 and columns[-1] <= 20 + width + 8


def test_characters_without_a_font_stand_as_different_boxes():
    letters = TextRenderer(Fonts([]))
    shapes = [inked(letters, text)[0] for text in ("猫", "狗", "😀")]
    assert not np.array_equal(shapes[0], shapes[1]) and all(shape.sum() > 60 for shape in shapes)
    assert letters.width("😀", 24) > letters.width("猫", 24) > 0


def test_right_to_left_runs_stand_from_the_right():
    """Two boxes and a word: the first letters come last on the line."""
    letters = TextRenderer(Fonts([]))
    line, _ = inked(letters, "בa")
    width = letters.width("a", 24)
    alone, _ = inked(letters, "a")
    assert np.array_equal(line[:, : 20 + width - 2], alone[:, : 20 + width - 2])


def test_shortened_text_fits():
    letters = TextRenderer(Fonts([]))
    short = letters.shorten("a very long line " * 20, 20, 200)
    assert short.endswith("…") and 150 < letters.width(short, 20) <= 200
    assert letters.shorten("short", 20, 200) == "short"


@pytest.mark.parametrize(
    "text, parts",
    [("e\u0301a", ["e\u0301", "a"]), ("👨‍👩‍👧👍🏽", ["👨‍👩‍👧", "👍🏽"]), ("क्षेत्र", ["क्षे", "त्र"]), ("ab", ["a", "b"])],
)
def test_clusters(text, parts):
    assert unicode_text.clusters(text) == parts


def test_reading_logs_and_never_raises(default, caplog):
    """Every plane of Unicode, halves of characters included."""
    text = "".join(map(chr, range(0, 0x110000, 251)))
    with caplog.at_level(logging.WARNING):
        inspection = inspect_prompt(default, text)
    assert "surrogates" in caplog.text and len(format_report(inspection)) > 1000
    assert draw_inspection(inspection, TextRenderer(Fonts([]))).height <= MAX_HEIGHT
