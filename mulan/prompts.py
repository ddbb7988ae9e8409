"""A prompt as the windows of tokens and weights that the text encoder is given: ComfyUI's tokenizer contract for MuLan.

Two styles. ``upstream`` repeats mulankit 1.0.2 token by token. ``default`` is the same but for four deviations:
- `(words:1.2)` sets weights and `\\(` escapes, as in ComfyUI; upstream reads brackets as text;
- a prompt that is empty gets no prefix, as upstream's empty negative, so one CLIP serves both sides;
- characters that merge with the prefix's colon ("1girl", "(red") are kept; upstream cuts them away;
- text past 75 tokens continues in another window, split between words; upstream drops it.
`embedding:name` is taken out with a warning: textual inversions of CLIP mean nothing to this encoder.
"""
from __future__ import annotations

import logging
import re
from bisect import bisect_right
from typing import NamedTuple

import torch
from comfy import sd1_clip

from .families import Family
from .files import SAVED_CONFIG
from .tokenizer import BOS, EOS, PAD, InternVLTokenizer, Piece

STYLES = ("default", "upstream")
CONTENT_TOKENS = 75  # of a window: bos, prefix and eos take the rest

_EMBEDDING = re.compile(r"(?<![^\s(,])embedding:[^\s,:()]+")
_ENDS_PHRASE = tuple(",.;:!?，。、；：！？｡।॥؛،؟…）)")


class Token(NamedTuple):
    """One row of a window; `word` counts the words of the prompt from 1, 0 stands for bos, prefix, eos and padding."""

    id: int
    weight: float
    word: int


class PromptTokenizer:
    """Text -> {token key: windows}; every window is padded to the length the family's adapter was trained with."""

    def __init__(self, tokenizer: InternVLTokenizer, family: Family, style: str, config: torch.Tensor | None = None):
        if style not in STYLES:
            raise ValueError(f"prompt_style is {style!r}, expected is one of {', '.join(STYLES)}")
        self.tokenizer = tokenizer
        self.family = family
        self.style = style
        self._config = config

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, tokenizer_options: dict | None = None, **options):
        """The windows of a prompt: rows (id, weight), or (id, weight, word) with `return_word_ids`.

        `tokenizer_options` may hold ``prefix``: "never" for negatives as upstream encodes them. `disable_weights` reads brackets as text.
        """
        prefixed = (tokenizer_options or {}).get("prefix") != "never" and not (self.style == "default" and text == "")
        if self.style == "upstream" or options.get("disable_weights", False):
            segments = [(text, 1.0)]
        else:
            segments = _weighted_segments(text)
        windows = self._windows("".join(segment for segment, _ in segments), _Weights(segments), prefixed)
        if not return_word_ids:
            windows = [[row[:2] for row in window] for window in windows]
        else:
            windows = [[tuple(row) for row in window] for window in windows]
        return {self.family.token_key: windows}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What CLIPSave must keep beside the weights, so that the file can be loaded again."""
        kept = {"spiece_model": torch.frombuffer(bytearray(self.tokenizer.model), dtype=torch.uint8)}
        return kept if self._config is None else {**kept, SAVED_CONFIG: self._config}

    def untokenize(self, tokens) -> list[tuple]:
        return [(token, self.tokenizer.piece(token[0])) for token in tokens]

    def decode(self, token_ids, skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(list(token_ids))

    def _windows(self, text: str, weights: _Weights, prefixed: bool) -> list[list[Token]]:
        pieces = self.tokenizer.encode_prefixed(text, keep_first=self.style == "default") if prefixed else self.tokenizer.encode(text)
        prefix = pieces[:len(self.tokenizer.prefix)] if prefixed else []
        content = pieces[len(prefix):]
        window = self.family.prefixed_window if prefixed else self.family.bare_window
        if self.style == "upstream":
            chunks = [content[:window - len(prefix) - 2]]
        else:
            chunks = _chunks(content, CONTENT_TOKENS)
        head = [Token(BOS, 1.0, 0)] + [Token(piece.id, 1.0, 0) for piece in prefix]
        windows, word = [], 0
        for chunk in chunks:
            rows = list(head)
            for piece in chunk:
                word += piece.starts_word or word == 0
                rows.append(Token(piece.id, weights.at(piece.offset), word))
            rows.append(Token(EOS, 1.0, 0))
            windows.append(rows + [Token(PAD, 1.0, 0)] * (window - len(rows)))
        return windows


class _Weights:
    """Looks a weight up by the offset of a byte in the segments' joined text."""

    def __init__(self, segments: list[tuple[str, float]]):
        self._starts, self._weights, offset = [], [], 0
        for text, weight in segments:
            self._starts.append(offset)
            self._weights.append(weight)
            offset += len(text.encode())

    def at(self, offset: int | None) -> float:
        if offset is None or not self._starts:
            return 1.0
        return self._weights[max(0, bisect_right(self._starts, offset) - 1)]


def _weighted_segments(text: str) -> list[tuple[str, float]]:
    inversions = _EMBEDDING.findall(text)
    if inversions:
        logging.warning("MuLan: textual inversions are made for CLIP and mean nothing to InternVL, ignored: %s", ", ".join(inversions))
        text = _EMBEDDING.sub("", text)
    segments = sd1_clip.token_weights(sd1_clip.escape_important(text), 1.0)
    return [(sd1_clip.unescape_important(segment), weight) for segment, weight in segments if segment]


def _chunks(pieces: list[Piece], size: int) -> list[list[Piece]]:
    """Splits into runs of at most `size`: behind a phrase, else before a word, else anywhere but inside a character."""
    chunks = []
    while len(pieces) > size:
        ends = range(size, size // 2, -1)
        cut = next((i for i in ends if pieces[i - 1].text.endswith(_ENDS_PHRASE)), None)
        cut = cut or next((i for i in ends if pieces[i].starts_word), None)
        cut = cut or next((i for i in range(size, 0, -1) if not pieces[i].continues_character), size)
        chunks.append(pieces[:cut])
        pieces = pieces[cut:]
    return chunks + [pieces]
