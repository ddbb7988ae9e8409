"""InternVL's tokenizer: sentencepiece as upstream's slow LLaMA tokenizer uses it, with the place of every piece in the text.

Source: mulankit 1.0.2 loads transformers' ``LlamaTokenizer`` (legacy, slow) and sets pad = unk = 0. What that does is:
``[1] + pieces + [2]``, the text as it is (no cleaning, no normalising), and four literals that become one id each.
"""
from __future__ import annotations

import re
from typing import NamedTuple

import sentencepiece

UNK = PAD = 0
BOS = 1
EOS = 2
PREFIX = "summarize:"
SPACE = "\u2581"

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Piece(NamedTuple):
    """One token: its id, its piece, and the offset in the text's UTF-8 bytes of its first byte that is no space."""

    id: int
    text: str
    offset: int | None  # None where the piece could not be aligned with the text

    @property
    def starts_word(self) -> bool:
        return self.text.startswith(SPACE)

    @property
    def continues_character(self) -> bool:
        """True for a byte in the middle of a character that the vocabulary lacks."""
        byte = _BYTE_PIECE.fullmatch(self.text)
        return byte is not None and 0x80 <= int(byte[1], 16) < 0xC0


class InternVLTokenizer:
    """Text -> pieces, on a sentencepiece model given as bytes. Raises ValueError for bytes that are no such model."""

    def __init__(self, model: bytes):
        self.model = model
        try:
            self.sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"the text encoder's sentencepiece model ({len(model)} bytes) cannot be read: {error}") from error
        self.literals = {"<s>": BOS, "</s>": EOS, "<unk>": UNK}
        pad = self.sentencepiece.piece_to_id("[PAD]")
        if pad != self.sentencepiece.unk_id():
            self.literals["[PAD]"] = pad
        self._split = re.compile("(" + "|".join(map(re.escape, self.literals)) + ")")
        self.prefix = [self._piece(id, None) for id in self.sentencepiece.encode(PREFIX)]
        self._newline = self.sentencepiece.encode("\n")

    def encode(self, text: str) -> list[Piece]:
        """All pieces of the text, exactly upstream's, without bos and eos.

        The literals split the text; each part between them is encoded on its own and so gets its own leading space.
        """
        pieces, offset = [], 0
        for part in self._split.split(text):
            if part in self.literals:
                pieces.append(Piece(self.literals[part], part, offset))
            elif part:
                pieces += self._align(self.sentencepiece.encode(part), part, offset)
            offset += len(part.encode())
        return pieces

    def encode_prefixed(self, text: str, keep_first: bool) -> list[Piece]:
        """The pieces of ``summarize:`` + text; three prefix pieces come first, offsets count from the start of the text.

        Upstream cuts rows 1..3 away, and where the text's first characters merge with the colon ("1girl" -> ":1") it loses them.
        ``keep_first`` keeps them: the text is then encoded behind a newline, which leaves it without a leading space just as the colon does.
        """
        shift = len(PREFIX.encode())
        pieces = [p._replace(offset=p.offset - shift if p.offset is not None else None) for p in self.encode(PREFIX + text)]
        if not keep_first or [p.id for p in pieces[:3]] == [p.id for p in self.prefix]:
            return pieces
        behind_newline = self.encode("\n" + text)
        count = len(self._newline)
        if [p.id for p in behind_newline[:count]] != self._newline:
            return pieces
        return self.prefix + [p._replace(offset=p.offset - 1 if p.offset is not None else None) for p in behind_newline[count:]]

    def decode(self, ids: list[int]) -> str:
        return self.sentencepiece.decode([id for id in ids if id > EOS])

    def piece(self, id: int) -> str:
        return self.sentencepiece.id_to_piece(id)

    def _piece(self, id: int, offset: int | None) -> Piece:
        return Piece(id, self.piece(id), offset)

    def _align(self, ids: list[int], text: str, start: int) -> list[Piece]:
        """Walks pieces and text side by side; a piece that does not fit ends the alignment (offset None from there on)."""
        raw = text.encode()
        position = -1  # sentencepiece puts one space before the text
        aligned = True
        pieces = []
        for id in ids:
            piece = self._piece(id, None)
            first = None
            byte = _BYTE_PIECE.fullmatch(piece.text)
            expected = bytes([int(byte[1], 16)]) if byte else piece.text.replace(SPACE, " ").encode()
            if id == UNK:
                aligned = False
            if aligned and position < 0:
                if expected.startswith(b" ") and not byte:
                    expected, position = expected[1:], 0
                else:
                    aligned = False
            if aligned and raw[position:position + len(expected)] == expected:
                spaces = len(expected) - len(expected.lstrip(b" "))
                first = position + (spaces if spaces < len(expected) else 0)
                position += len(expected)
            else:
                aligned = False
            pieces.append(piece._replace(offset=None if first is None else start + first))
        return pieces
