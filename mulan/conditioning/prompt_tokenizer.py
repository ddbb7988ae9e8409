r"""A prompt as the windows of tokens and weights that the text encoder gets: ComfyUI's tokenizer contract for MuLan.

Two styles. ``upstream`` repeats mulankit 1.0.2 token by token. ``default`` is the same but for these deviations:
- `(words:1.2)` sets weights and `\(` escapes, as in ComfyUI (prompt_syntax.py); upstream reads brackets as text;
- `BREAK` begins another window; upstream reads it as text;
- an empty prompt gets no prefix where upstream's negatives get none, so one CLIP serves both sides;
- characters that merge with the prefix's colon ("1girl", "(red") are kept; upstream cuts them away;
- text past one window (75 tokens for SD1.5 and SD2.1, 78 for the others) goes on in another (windows.py); upstream
  drops it;
- `embedding:name` is taken out with a warning: textual inversions of CLIP mean nothing to this encoder. White space,
  brackets, commas, colons and all punctuation outside ASCII end the name;
- any run of white space is one space, line breaks with it, and none stands at the ends, as for CLIP; between Chinese
  characters and others of scripts without spaces it is nothing, but for spaces typed as such (as CSS does with line
  breaks); a prompt or part in which nothing can be seen is empty; byte order marks go. Upstream makes tokens of them;
In both, lone surrogates (halves of characters) become U+FFFD; upstream fails on them.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..boundary.interrupts import interruptible
from ..boundary.limits import MAX_PROMPT_WINDOWS, MAX_TEXT_LENGTH
from . import windows
from .families import Family
from .prompt_syntax import Notes, Segment, parse_prompt, plain_prompt, with_plain_spaces
from .text_config import SAVED_CONFIG
from .tokenizer import Frame, Piece, WindowTokenizer

STYLES = ("default", "upstream")
BYTE_ORDER_MARK = "\ufeff"
NEGATIVE = "negative"  # the tokenizer option of the CLIP for negatives, and the key that marks them for SDXL's encoder


class Token(NamedTuple):
    """One token of a prompt's text; `word_id` counts the words of the prompt from 1."""

    piece: Piece
    weight: float
    word_id: int


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as it goes into the text encoder, and what became of the rest of it."""

    text: list[str]  # of each part, brackets and BREAK taken away
    frame: Frame
    prefix: list[Piece]  # as it stands in every window; none where the prompt goes in bare
    windows: list[list[Token]]
    part_of_window: list[int]  # index of the part that each window belongs to
    length: int  # rows of a window, padding included
    capacity: int  # rows of a window for text
    merged: str  # upstream: text in the prefix's last row, which is cut away
    dropped: list[Token]  # upstream: what does not fit into the window
    notes: Notes

    def rows(self, window: list[Token]) -> list[tuple[int, float, int]]:
        """Return (id, weight, word id) of all rows: bos, prefix, text, eos, padding.

        The word id of all but text is 0.
        """
        head = [(self.frame.bos, 1.0, 0)] + [(piece.id, 1.0, 0) for piece in self.prefix]
        rows = head + [(token.piece.id, token.weight, token.word_id) for token in window] + [(self.frame.eos, 1.0, 0)]
        return rows + [(self.frame.pad, 1.0, 0)] * (self.length - len(rows))


class PromptTokenizer:
    """Text -> {token key: windows}; every window is padded to the length the family's adapter was trained with.

    Nodes of other packs look for CLIP's own tokenizer under names such as `clip_l`: there is a `KeyTokenizer` for each
    of the family's keys.
    """

    def __init__(self, tokenizer: WindowTokenizer, family: Family, style: str, config: torch.Tensor | None = None):
        if style not in STYLES:
            raise ValueError(f"prompt_style is {style!r}, expected one of {', '.join(STYLES)}")
        self.tokenizer = tokenizer
        self.family = family
        self.style = style
        self._config = config
        for key in family.token_keys:
            setattr(self, f"clip_{key}", KeyTokenizer(self, key))

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, tokenizer_options: dict | None = None, **options
    ):
        """Return the windows of a prompt, the same under each of the family's token keys.

        A window is rows (id, weight), or (id, weight, word id) with `return_word_ids`. `tokenizer_options` may hold
        ``negative``: True for negatives as upstream encodes them. `disable_weights` reads brackets and BREAK as text.
        A negative of a family that has no bare ones carries the key ``negative``, with an empty list.
        """
        negative = bool((tokenizer_options or {}).get(NEGATIVE, False))
        prompt = self.tokenize(text, negative, options.get("disable_weights", False))
        columns = 3 if return_word_ids else 2
        rows = [[row[:columns] for row in prompt.rows(window)] for window in interruptible(prompt.windows)]
        tokens = {key: list(rows) for key in self.family.token_keys}
        return {**tokens, NEGATIVE: []} if negative and not self.family.bare_negative else tokens

    def tokenize(self, text: str, negative: bool = False, disable_weights: bool = False) -> TokenizedPrompt:
        """Return all that is known of a prompt before it is encoded.

        Raises ValueError where it is no text or too long; whatever else it holds can be read.
        """
        if not isinstance(text, str):
            raise ValueError(f"a prompt is text, and this is a value of type {type(text).__name__}")
        if len(text) > MAX_TEXT_LENGTH:
            raise ValueError(f"the prompt is {len(text)} characters long, and at most {MAX_TEXT_LENGTH} are read")
        if self.style == "upstream":
            prompt = plain_prompt(text)
        else:
            text = text.replace(BYTE_ORDER_MARK, "")
            prompt = with_plain_spaces(plain_prompt(text) if disable_weights else parse_prompt(text))
        _check_length(len(prompt.parts))
        empty = self.style == "default" and not any(prompt.parts)
        prefixed = not (self.family.bare_negative and (negative or empty))
        with_prefix, bare = self.family.windows(len(self.tokenizer.prefix))
        length = with_prefix if prefixed else bare
        count = len(self.tokenizer.prefix) if prefixed else 0
        capacity = length - count - 2

        texts = ["".join(segment.text for segment in part) for part in prompt.parts]
        encoded = [self._pieces(part, prefixed) for part in interruptible(texts)]
        prefix = encoded[0][:count]
        tokens = _tokens([pieces[count:] for pieces in encoded], prompt.parts)
        merged, dropped = "", []
        if self.style == "upstream":
            (content,), (part,) = tokens, texts
            kept, dropped = [content[:capacity]], content[capacity:]
            part_of_window = [0]
            if prefix and prefix[-1].end:
                merged = part.encode()[: prefix[-1].end].decode(errors="replace")
        else:
            chunks = [_split(part, capacity) for part in interruptible(tokens)]
            kept = [window for part in chunks for window in part]
            _check_length(len(kept))
            part_of_window = [index for index, part in enumerate(chunks) for _ in part]
        return TokenizedPrompt(
            texts, self.tokenizer.frame, prefix, kept, part_of_window, length, capacity, merged, dropped, prompt.notes
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what CLIPSave must keep beside the weights, so that the file can be loaded again."""
        kept = {
            name: torch.frombuffer(bytearray(content), dtype=torch.uint8)
            for name, content in self.tokenizer.files().items()
        }
        return kept if self._config is None else {**kept, SAVED_CONFIG: self._config}

    def untokenize(self, tokens) -> list[tuple]:
        """Return (row, piece) of each row (id, ...) of a window."""
        return [(token, self.tokenizer.piece(token[0])) for token in tokens]

    def decode(self, token_ids, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; special tokens are always left out."""
        return self.tokenizer.decode(list(token_ids))

    def _pieces(self, text: str, prefixed: bool) -> list[Piece]:
        return (
            self.tokenizer.encode_prefixed(text, keep_merged=self.style == "default")
            if prefixed
            else self.tokenizer.encode(text)
        )


class KeyTokenizer:
    """One of a `PromptTokenizer`'s keys, as nodes of other packs know CLIP's tokenizer.

    It is no `SDTokenizer`: a count would include the prefix, and a textual inversion would be looked for.
    """

    pad_to_max_length = True  # so a BREAK can begin a window
    embedding_directory = None
    tokens_start = 1

    def __init__(self, tokenizer: PromptTokenizer, key: str):
        self.embedding_key = f"clip_{key}"
        frame = tokenizer.tokenizer.frame
        self.start_token, self.end_token, self.pad_token = frame.bos, frame.eos, frame.pad
        self.max_length = tokenizer.family.windows(len(frame.prefix))[0]
        self._tokenizer, self._key = tokenizer, key

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options) -> list[list[tuple]]:
        """Return the windows of a prompt under this key."""
        return self._tokenizer.tokenize_with_weights(text, return_word_ids, **options)[self._key]

    def untokenize(self, tokens) -> list[tuple]:
        """Return (row, piece) of each row of a window."""
        return self._tokenizer.untokenize(tokens)


def _check_length(num_windows: int) -> None:
    if num_windows > MAX_PROMPT_WINDOWS:
        raise ValueError(
            f"the prompt takes {num_windows} windows of the text encoder or more, and at most {MAX_PROMPT_WINDOWS} are "
            f"encoded. Shorten it"
        )


def _tokens(parts: list[list[Piece]], segments: list[list[Segment]]) -> list[list[Token]]:
    """Join each part's pieces with their weights; words are counted through all parts."""
    tokens, word_id = [], 0
    for pieces, weighted in zip(parts, segments, strict=True):
        weights = _Weights(weighted)
        rows = []
        for index, piece in enumerate(interruptible(pieces)):
            word_id += index == 0 or piece.starts_word
            rows.append(Token(piece, weights.at(piece.offset), word_id))
        tokens.append(rows)
    return tokens


def _split(tokens: list[Token], size: int) -> list[list[Token]]:
    chunks, begin = [], 0
    for chunk in windows.split_windows([token.piece for token in tokens], size):
        chunks.append(tokens[begin : begin + len(chunk)])
        begin += len(chunk)
    return chunks


class _Weights:
    """Looks a weight up by the offset of a byte in the segments' joined text."""

    def __init__(self, segments: list[Segment]):
        self._starts, self._weights, offset = [], [], 0
        for text, weight in segments:
            self._starts.append(offset)
            self._weights.append(weight)
            offset += len(text.encode())

    def at(self, offset: int | None) -> float:
        if offset is None or not self._starts:
            return 1.0
        return self._weights[max(0, bisect_right(self._starts, offset) - 1)]
