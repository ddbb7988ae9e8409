"""InternVL's tokenizer: sentencepiece as upstream's slow LLaMA tokenizer uses it, with the place of every piece in the text.

Source: mulankit 1.0.2 loads transformers' ``LlamaTokenizer`` (legacy, slow) and sets pad = unk = 0. What that does is:
``[1] + pieces + [2]``, the text as it is (no cleaning, no normalising), and four literals that become one id each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import sentencepiece

UNK = PAD = 0
BOS = 1
EOS = 2
PREFIX = "summarize:"
SPACE = "\u2581"

_SPACE_BYTES = SPACE.encode()
_BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


class Piece(NamedTuple):
    """One token: its id, its piece, and the offset in the text's UTF-8 bytes of its first byte that is no space."""

    id: int
    text: str
    offset: int | None  # None where the piece could not be aligned with the text
    end: int | None = None  # behind its last byte

    @property
    def starts_word(self) -> bool:
        return self.text.startswith(SPACE)

    @property
    def byte(self) -> int | None:
        """The byte that a piece such as ``<0xE1>`` stands for; None for all other pieces."""
        return _BYTES.get(self.text)


class Unit(NamedTuple):
    """Pieces that only together are text: one piece, or the bytes of one character that the vocabulary lacks."""

    text: str  # a leading space stands where a word begins
    pieces: tuple[Piece, ...]
    is_bytes: bool


def units(pieces: Sequence[Piece]) -> list[Unit]:
    """The pieces, bytes put together into characters; bytes that are no UTF-8 stand alone, as U+FFFD."""
    found, i = [], 0
    while i < len(pieces):
        first = pieces[i].byte
        if first is None:
            found.append(Unit(pieces[i].text.replace(SPACE, " "), (pieces[i],), False))
            i += 1
            continue
        length = 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        group = tuple(pieces[i : i + length])
        raw = [piece.byte for piece in group]
        try:
            text = bytes(raw).decode()
        except (TypeError, UnicodeDecodeError):  # a piece that is no byte, or bytes that are no character
            group, text = group[:1], "\ufffd"
        found.append(Unit(text, group, True))
        i += len(group)
    return found


class InternVLTokenizer:
    """Text -> pieces, on a sentencepiece model given as bytes. Raises ValueError for bytes that are no such model."""

    def __init__(self, model: bytes):
        self.model = model
        try:
            self.sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(
                f"the text encoder's sentencepiece model ({len(model)} bytes) cannot be read: {error}"
            ) from error
        self.literals = {"<s>": BOS, "</s>": EOS, "<unk>": UNK}
        pad = self.sentencepiece.piece_to_id("[PAD]")
        if pad != self.sentencepiece.unk_id():
            self.literals["[PAD]"] = pad
        self._split = re.compile("(" + "|".join(map(re.escape, self.literals)) + ")")
        self.prefix = [self._piece(id, None) for id in self.sentencepiece.encode(PREFIX)]
        self._newline = self.sentencepiece.encode("\n")

    def encode(self, text: str, offset: int = 0) -> list[Piece]:
        """All pieces of the text, exactly upstream's, without bos and eos; the text's first byte counts as `offset`.

        The literals split the text; each part between them is encoded on its own and so gets its own leading space.
        """
        pieces = []
        for part in self._split.split(text):
            if part in self.literals:
                pieces.append(Piece(self.literals[part], part, offset, offset + len(part)))
            elif part:
                pieces += self._align(self.sentencepiece.encode(part), part, offset)
            offset += len(part.encode())
        return pieces

    def encode_prefixed(self, text: str, keep_merged: bool) -> list[Piece]:
        """The pieces of ``summarize:`` + text; three prefix pieces come first, offsets count from the start of the text.

        Upstream cuts rows 1..3 away, and where the text's first characters merge with the colon ("1girl" -> ":1") it loses them.
        ``keep_first`` keeps them: the text is then encoded behind a newline, which leaves it without a leading space just as the colon does.
        """
        pieces = self.encode(PREFIX + text, -len(PREFIX.encode()))
        if not keep_merged or [p.id for p in pieces[:3]] == [p.id for p in self.prefix]:
            return pieces
        behind_newline = self.encode("\n" + text, -1)
        count = len(self._newline)
        if [p.id for p in behind_newline[:count]] != self._newline:
            return pieces
        return self.prefix + behind_newline[count:]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; special tokens are left out."""
        return self.sentencepiece.decode([token_id for token_id in ids if token_id > EOS])

    def piece(self, id: int) -> str:
        return self.sentencepiece.id_to_piece(id)

    def _piece(self, id: int, offset: int | None) -> Piece:
        return Piece(id, self.piece(id), offset)

    def _align(self, ids: list[int], text: str, start: int) -> list[Piece]:
        """Walks pieces and text side by side; a piece that does not fit ends the alignment (offset None from there on).

        A space and a literal U+2581 are the same to sentencepiece, so both are read as spaces, of one and of three bytes.
        """
        raw = text.encode()
        position = -1  # sentencepiece puts one space before the text
        pieces = []
        for id, name in zip(ids, self.sentencepiece.id_to_piece(ids)):
            first = None
            if position is not None:
                first, position = (None, None) if id == UNK else _consume(raw, position, name)
            pieces.append(
                Piece(id, name, None, None) if first is None else Piece(id, name, start + first, start + position)
            )
        return pieces


def _consume(raw: bytes, position: int, name: str) -> tuple[int | None, int | None]:
    """-> (the piece's first byte that is no space, the byte behind its last); (None, None) where it is not what `raw` holds there.

    The space that sentencepiece puts before the text is at -1.
    """
    byte = _BYTES.get(name)
    if byte is not None:
        return (
            (position, position + 1)
            if position >= 0 and raw[position : position + 1] == bytes((byte,))
            else (None, None)
        )
    body, begin = name.lstrip(SPACE), position
    for _ in range(len(name) - len(body)):
        position = _behind_space(raw, position)
        if position is None:
            return None, None
    if not body:
        return max(begin, 0), position
    start = position
    for number, part in enumerate(body.split(SPACE)):  # few pieces have a space inside
        position = position if number == 0 else _behind_space(raw, position)
        part = part.encode()
        if position is None or position < 0 or not raw.startswith(part, position):
            return None, None
        position += len(part)
    return start, position


def _behind_space(raw: bytes, position: int) -> int | None:
    if position < 0:
        return 0
    if raw.startswith(b" ", position):
        return position + 1
    return position + len(_SPACE_BYTES) if raw.startswith(_SPACE_BYTES, position) else None
