"""What a prompt becomes before it is encoded, as data and as text. It needs the tokenizer alone, not the encoder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..images.unicode_text import WITHOUT_SPACES, is_mark, script
from .prompt_syntax import quoted
from .prompt_tokenizer import PromptTokenizer, Token, TokenizedPrompt
from .tokenizer import PREFIX, SPACE, Frame, WindowTokenizer, units

# The same sentence in a language of each script, to compare how many tokens it takes.
ENGLISH = "A small red house stands by the river under a blue sky."
SAMPLES = {
    "Cyrillic": ("Russian", "Маленький красный дом стоит у реки под голубым небом."),
    "Greek": ("Greek", "Ένα μικρό κόκκινο σπίτι στέκεται δίπλα στο ποτάμι κάτω από τον γαλάζιο ουρανό."),
    "Han": ("Chinese", "一座红色的小房子坐落在河边，头顶是蓝天。"),
    "Hiragana": ("Japanese", "青い空の下、川のそばに小さな赤い家が立っている。"),
    "Katakana": ("Japanese", "青い空の下、川のそばに小さな赤い家が立っている。"),
    "Hangul": ("Korean", "파란 하늘 아래 강가에 작은 빨간 집이 서 있다."),
    "Arabic": ("Arabic", "يقف منزل أحمر صغير بجانب النهر تحت سماء زرقاء."),
    "Hebrew": ("Hebrew", "בית אדום קטן עומד ליד הנהר תחת שמיים כחולים."),
    "Devanagari": ("Hindi", "नीले आसमान के नीचे नदी के किनारे एक छोटा लाल घर है।"),
    "Bengali": ("Bengali", "নীল আকাশের নিচে নদীর ধারে একটি ছোট লাল বাড়ি আছে।"),
    "Tamil": ("Tamil", "நீல வானத்தின் கீழ் ஆற்றின் அருகே ஒரு சிறிய சிவப்பு வீடு உள்ளது."),
    "Thai": ("Thai", "บ้านสีแดงหลังเล็กตั้งอยู่ริมแม่น้ำใต้ท้องฟ้าสีฟ้า"),
    "Georgian": ("Georgian", "პატარა წითელი სახლი დგას მდინარესთან ლურჯი ცის ქვეშ."),
    "Armenian": ("Armenian", "Փոքրիկ կարմիր տունը կանգնած է գետի մոտ կապույտ երկնքի տակ։"),
    "Ethiopic": ("Amharic", "ትንሽ ቀይ ቤት በሰማያዊ ሰማይ ስር በወንዙ አጠገብ ይገኛል።"),
}

_FULL_WIDTH_WEIGHT = re.compile(r"（[^（）()]{0,200}[:：]\s?[\d.]{1,8}[）)]|\([^（）()]{0,200}：\s?[\d.]{1,8}[）)]")
MANY_WINDOWS = 8  # a prompt of more is noted
MAX_WINDOWS = 32  # shown in a report


@dataclass(frozen=True)
class TokenBox:
    """What is shown as one: a piece, or the bytes of a character that the vocabulary lacks."""

    text: str  # without the space before it
    token_ids: tuple[int, ...]
    weight: float
    group: int  # counts words from 1, pieces in scripts without spaces; below 0: not text of the prompt
    starts_word: bool
    is_bytes: bool
    is_literal: bool  # a special token that the user wrote out, such as <s>


@dataclass(frozen=True)
class InspectedWindow:
    """The text of one window."""

    boxes: list[TokenBox]
    tokens: int
    after_break: bool


@dataclass(frozen=True)
class Sample:
    """How many tokens the same sentence takes in a language of the prompt's main script and in English."""

    language: str
    tokens: int
    english: int


@dataclass(frozen=True)
class Inspection:
    """All that the image and the report show."""

    family: str
    style: str
    negative: bool
    frame: Frame
    prefix: list[TokenBox]  # none where the prompt goes in bare
    length: int  # rows of a window
    capacity: int  # of these, for text
    windows: list[InspectedWindow]
    merged: str
    dropped: list[TokenBox]
    dropped_tokens: int
    dropped_text: str
    words: int | None  # None where most of the text's scripts write no spaces
    characters: int  # spaces do not count
    scripts: list[tuple[str, float]]  # with their share of the letters, the largest first
    sample: Sample | None
    notes: list[str]

    @property
    def tokens(self) -> int:
        """Tokens of the text, dropped ones included."""
        return sum(window.tokens for window in self.windows) + self.dropped_tokens

    @property
    def per_word(self) -> float | None:
        return self.tokens / self.words if self.words else None

    @property
    def per_character(self) -> float | None:
        return self.tokens / self.characters if self.characters else None


def inspect_prompt(prompts: PromptTokenizer, text: str, negative: bool = False) -> Inspection:
    """Read `text` as the CLIP of this tokenizer would; `negative`: as the CLIP for negatives.

    Never raises, whatever the text.
    """
    prompt = prompts.tokenize(text, negative)
    windows = [
        InspectedWindow(
            _boxes(window, prompts.tokenizer),
            len(window),
            index > 0 and prompt.part_of_window[index] != prompt.part_of_window[index - 1],
        )
        for index, window in enumerate(prompt.windows)
    ]
    whole = " ".join(prompt.text)
    letters = Counter(filter(None, map(script, whole)))
    shares = [
        (name, count / letters.total()) for name, count in sorted(letters.items(), key=lambda item: (-item[1], item[0]))
    ]
    return Inspection(
        family=prompts.family.title,
        style=prompts.style,
        negative=negative,
        frame=prompt.frame,
        prefix=[
            TokenBox(piece.text.lstrip(SPACE), (piece.id,), 1.0, -2, piece.starts_word, False, False)
            for piece in prompt.prefix
        ],
        length=prompt.length,
        capacity=prompt.capacity,
        windows=windows,
        merged=prompt.merged,
        dropped=_boxes(prompt.dropped, prompts.tokenizer),
        dropped_tokens=len(prompt.dropped),
        dropped_text=_dropped_text(prompt),
        words=_words(whole, letters),
        characters=sum(not character.isspace() for character in whole),
        scripts=shares,
        sample=_sample(shares, prompts.tokenizer),
        notes=_notes(prompts, text, prompt, windows),
    )


def format_report(inspection: Inspection) -> str:
    """Write the inspection as text.

    A piece begins with ``▁`` where a word begins; ``×1.3`` is its weight, ``[3]`` its bytes.
    """
    lines = summary(inspection)
    for number, window in enumerate(inspection.windows[:MAX_WINDOWS], 1):
        lines += [
            "",
            f"window {number}{' (BREAK)' if window.after_break else ''}: {window.tokens} of {inspection.capacity} "
            "tokens",
        ]
        if window.boxes:
            lines.append(" ".join(map(_box_text, window.boxes)))
    if len(inspection.windows) > MAX_WINDOWS:
        lines += ["", f"... and {plural(len(inspection.windows) - MAX_WINDOWS, 'window')} more"]
    if inspection.merged or inspection.dropped:
        lines.append("")
    if inspection.merged:
        lines.append(f"lost to the prefix's colon: {inspection.merged!r}")
    if inspection.dropped:
        lines.append(f"cut away, {inspection.dropped_tokens} tokens: {inspection.dropped_text!r}")
    if inspection.notes:
        lines += ["", *(f"note: {note}" for note in inspection.notes)]
    return "\n".join(lines)


def summary(inspection: Inspection) -> list[str]:
    """Return the report's head: two to four lines."""
    prefix = f"prefix {PREFIX}" if inspection.prefix else "no prefix"
    lines = [
        f"{inspection.family}, {'negative' if inspection.negative else 'prompt'}, style {inspection.style}, {prefix}",
        f"{plural(inspection.tokens, 'token')} of text in {plural(len(inspection.windows), 'window')} of "
        f"{inspection.length} rows, "
        f"{inspection.capacity} of them for text",
    ]
    if inspection.characters:
        lines.append(fertility(inspection))
    if inspection.sample:
        lines.append(comparison(inspection.sample))
    return lines


def fertility(inspection: Inspection) -> str:
    """Say how many tokens the text's words and characters take, and in which scripts they are."""
    per_word = f"{inspection.per_word:.2f} tokens per word, " if inspection.per_word else ""
    scripts = ", ".join(f"{name} {share:.0%}" for name, share in inspection.scripts[:4]) or "no letters"
    return f"{per_word}{inspection.per_character:.2f} {'' if per_word else 'tokens '}per character; {scripts}"


def comparison(sample: Sample) -> str:
    """Say how many tokens the sample sentence takes."""
    return f"the same sentence takes {sample.tokens} tokens in {sample.language} and {sample.english} in English"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: 1 token, 2 tokens."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _boxes(tokens: Sequence[Token], tokenizer: WindowTokenizer) -> list[TokenBox]:
    boxes, group, word_id, begin = [], 0, 0, 0
    for unit in units([token.piece for token in tokens]):
        token = tokens[begin]
        begin += len(unit.pieces)
        text = unit.text[1:] if unit.text.startswith(" ") and len(unit.text.strip()) > 0 else unit.text
        group += token.word_id != word_id or any(script(character) in WITHOUT_SPACES for character in text)
        word_id = token.word_id
        literal = len(unit.pieces) == 1 and tokenizer.literals.get(unit.text) == token.piece.id
        boxes.append(
            TokenBox(
                text,
                tuple(piece.id for piece in unit.pieces),
                token.weight,
                group,
                unit.text.startswith(" "),
                unit.is_bytes,
                literal,
            )
        )
    return boxes


def _box_text(box: TokenBox) -> str:
    text = box.text.replace(" ", SPACE) if not box.text.strip(" ") else SPACE * box.starts_word + box.text
    text = text if text.isprintable() else "".join(c if c.isprintable() else f"<{ord(c):04X}>" for c in text)
    return (
        text
        + (f"[{len(box.token_ids)}]" if len(box.token_ids) > 1 else "")
        + (f"×{box.weight:g}" if box.weight != 1 else "")
    )


def _dropped_text(prompt: TokenizedPrompt) -> str:
    """Return what upstream cuts away, as it was written; a character that is cut in two is lost whole."""
    if not prompt.dropped:
        return ""
    end = prompt.windows[0][-1].piece.end if prompt.windows[0] else 0
    if end is None:  # the pieces lost their positions in the text
        return "".join(unit.text for unit in units([token.piece for token in prompt.dropped]))
    raw = prompt.text[0].encode()
    while end < len(raw) and 0x80 <= raw[end] < 0xC0:  # in the middle of a character
        end -= 1
    return raw[end:].decode()


def _words(text: str, letters: Counter[str]) -> int | None:
    """Count words between spaces; None where most letters are of scripts without spaces."""
    without = sum(times for name, times in letters.items() if name in WITHOUT_SPACES)
    if 2 * without > letters.total():
        return None
    return sum(any(character.isalnum() or is_mark(character) for character in word) for word in text.split())


def _sample(scripts: list[tuple[str, float]], tokenizer: WindowTokenizer) -> Sample | None:
    names = [name for name, share in scripts if share >= 0.05]
    if names[:1] == ["Han"]:  # in Japanese too it may be the larger part, but never alone
        names = [name for name in names if name in ("Hiragana", "Katakana")] or names
    if not names or names[0] not in SAMPLES:
        return None
    language, sentence = SAMPLES[names[0]]
    return Sample(language, len(tokenizer.encode(sentence)), len(tokenizer.encode(ENGLISH)))


def _notes(prompts: PromptTokenizer, text: str, prompt: TokenizedPrompt, windows: list[InspectedWindow]) -> list[str]:
    """Return what a person may not expect."""
    found, upstream = prompt.notes, prompts.style == "upstream"
    boxes = [box for window in windows for box in window.boxes]
    literals = sorted({box.text for box in boxes if box.is_literal})
    in_bytes = sum(box.is_bytes and len(box.token_ids) > 1 for box in boxes)
    notes = []
    if not boxes:
        notes.append("the prompt is empty")
    if found.inversions:
        notes.append(f"taken out, textual inversions are made for CLIP: {quoted(found.inversions)}")
    if upstream and "embedding:" in text:
        notes.append("embedding: is text in the upstream style")
    if upstream and re.search(r"[()]", text):
        notes.append("brackets are text in the upstream style and give no weights")
    if upstream and re.search(r"(?<!\w)BREAK(?!\w)", text):
        notes.append("BREAK is text in the upstream style")
    if not upstream and found.lone_brackets:
        notes.append(f"{plural(found.lone_brackets, 'bracket')} without a partner: read as text")
    if not upstream and _FULL_WIDTH_WEIGHT.search(text):
        notes.append("full-width （ ） and ： are text: weights are written (words:1.2)")
    if "embedding：" in text:
        notes.append("embedding： with a full-width colon is text")
    if found.limited_weights:
        notes.append("weights past 100 are limited to 100")
    if found.surrogates:
        notes.append(f"{plural(found.surrogates, 'lone surrogate')} (half a character): replaced by U+FFFD")
    if literals:
        notes.append(f"special tokens written out in the prompt act as such: {quoted(literals)}")
    if masked := sorted({box.text for box in boxes if box.is_literal and prompt.frame.pad in box.token_ids}):
        notes.append(f"{', '.join(masked)} is masked: the encoder does not see it")
    if in_bytes:
        notes.append(f"{plural(in_bytes, 'character')} not in the vocabulary: read byte by byte")
    if len(windows) > MANY_WINDOWS:
        notes.append(f"{len(windows)} windows: slow to encode and far more than adapters were trained with")
    elif len(windows) > 1:
        notes.append(f"{len(windows)} windows: each is encoded on its own, their contexts follow one another")
    return notes
