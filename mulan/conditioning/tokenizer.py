"""InternVL's tokenizer: sentencepiece as upstream's slow LLaMA tokenizer uses it, with the position of every piece in
the text.

Source: mulankit 1.0.2 loads transformers' ``LlamaTokenizer`` (legacy, slow) and sets pad = unk = 0. What that does is:
``[1] + pieces + [2]``, the text as it is (not cleaned, not normalized), and four literals that become one id each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from ..boundary.interrupts import interruptible
from ..boundary.limits import MAX_PROMPT_TOKENS
from ..checkpoints.tokenizer_files import load_pieces

UNK = PAD = 0
BOS = 1
EOS = 2
PREFIX = "summarize:"
SPACE = "\u2581"

_SPACE_BYTES = SPACE.encode()
MAX_UNIT = 16  # pieces that are whole characters only together; longer runs are no text
_BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


class Piece(NamedTuple):
    """One token: its id, its piece, and the offset of its first byte that is not a space, in the text's UTF-8 bytes."""

    id: int
    text: str
    offset: int | None  # None where the piece could not be aligned with the text
    end: int | None = None  # behind its last byte
    raw: bytes | None = None  # of a piece of a byte-level tokenizer that is not whole characters

    @property
    def starts_word(self) -> bool:
        return self.text.startswith(SPACE)

    @property
    def bytes(self) -> bytes | None:
        """The bytes that a piece such as ``<0xE1>`` stands for; None for pieces that are whole characters."""
        byte = _BYTES.get(self.text)
        return self.raw if byte is None else bytes((byte,))


class Unit(NamedTuple):
    """Pieces that are text together: one piece, or those whose bytes are whole characters only together."""

    text: str  # a leading space stands where a word begins
    pieces: tuple[Piece, ...]
    is_bytes: bool


def units(pieces: Sequence[Piece]) -> list[Unit]:
    """Group pieces into units, bytes into characters. Bytes that are not UTF-8 stand alone, as U+FFFD."""
    grouped, i = [], 0
    while i < len(pieces):
        if pieces[i].bytes is None:
            grouped.append(Unit(pieces[i].text.replace(SPACE, " "), (pieces[i],), False))
            i += 1
            continue
        text, count = _characters(pieces, i)
        grouped.append(Unit(text, tuple(pieces[i : i + count]), True))
        i += count
    return grouped


def _characters(pieces: Sequence[Piece], first: int) -> tuple[str, int]:
    """Return the characters that pieces of bytes are together from `first` on, and how many pieces those are."""
    raw = b""
    for count, piece in enumerate(pieces[first : first + MAX_UNIT], 1):
        if piece.bytes is None:
            break
        raw += piece.bytes
        try:
            return raw.decode(), count
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                break
    return "\ufffd", 1


class Frame(NamedTuple):
    """What stands around a prompt in a window, as ids: bos, the prefix where the prompt has one, the text, eos, then
    padding. No row sees one of padding; those see all others.
    """

    bos: int
    eos: int
    pad: int
    prefix: tuple[int, ...]


class WindowTokenizer(Protocol):
    """A text encoder's tokenizer, as `PromptTokenizer` uses it. `literals`: texts that become one id each."""

    frame: Frame
    prefix: list[Piece]
    literals: dict[str, int]

    def encode(self, text: str, offset: int = 0) -> list[Piece]:
        """Return the pieces of the text, without bos and eos; the text's first byte counts as `offset`."""
        ...

    def encode_prefixed(self, text: str, keep_merged: bool) -> list[Piece]:
        """Return the pieces of `PREFIX` + text, those of the prefix first; offsets count from the start of the text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; special tokens are left out."""
        ...

    def piece(self, token_id: int) -> str:
        """Return the piece of a token id."""
        ...

    def files(self) -> dict[str, bytes]:
        """Return what a file must hold for the tokenizer to be read again, by the names of its tensors."""
        ...


class InternVLTokenizer:
    """Text -> pieces, on a sentencepiece model given as bytes. Raises ValueError for bytes that are not a model."""

    def __init__(self, model: bytes):
        self.model = model
        self.sentencepiece = load_pieces(model)
        self.literals = {"<s>": BOS, "</s>": EOS, "<unk>": UNK}
        pad = self.sentencepiece.piece_to_id("[PAD]")
        if pad != self.sentencepiece.unk_id():
            self.literals["[PAD]"] = pad
        self._split = re.compile("(" + "|".join(map(re.escape, self.literals)) + ")")
        self.prefix = [self._piece(token_id, None) for token_id in self.sentencepiece.encode(PREFIX)]
        self.frame = Frame(BOS, EOS, PAD, tuple(piece.id for piece in self.prefix))
        self._newline = self.sentencepiece.encode("\n")

    def encode(self, text: str, offset: int = 0) -> list[Piece]:
        """Return the pieces of the text, exactly upstream's, without bos and eos; the text's first byte counts as
        `offset`.

        The literals split the text; each part between them is encoded on its own and so gets its own leading space.
        Raises ValueError for a text of more than `MAX_PROMPT_TOKENS`.
        """
        pieces: list[Piece] = []
        for part in interruptible(self._split.split(text)):
            if part in self.literals:
                check_length(len(pieces) + 1)
                pieces.append(Piece(self.literals[part], part, offset, offset + len(part)))
            elif part:
                token_ids = self.sentencepiece.encode(part)
                check_length(len(pieces) + len(token_ids))
                pieces += align(self.sentencepiece, token_ids, part, offset)
            offset += len(part.encode())
        return pieces

    def encode_prefixed(self, text: str, keep_merged: bool) -> list[Piece]:
        """Return the pieces of ``summarize:`` + text.

        Three prefix pieces come first; offsets count from the start of the text.

        Upstream cuts rows 1..3 away, and where the text's first characters merge with the colon ("1girl" -> ":1") it
        loses them. ``keep_merged`` keeps them: the text is then encoded behind a newline, which leaves it without a
        leading space just as the colon does.
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

    def piece(self, token_id: int) -> str:
        """Return the piece of a token id."""
        return self.sentencepiece.id_to_piece(token_id)

    def files(self) -> dict[str, bytes]:
        """Return what a file must hold for the tokenizer to be read again, by the names of its tensors."""
        return {"spiece_model": self.model}

    def _piece(self, token_id: int, offset: int | None) -> Piece:
        return Piece(token_id, self.piece(token_id), offset)


def align(sentencepiece: Any, token_ids: list[int], text: str, start: int, adds_space: bool = True) -> list[Piece]:
    """Walk pieces and text side by side; a piece that does not fit ends the alignment (offset None from there on).

    A space and a literal U+2581 are the same to sentencepiece, so both are read as spaces, of one and of three bytes.
    `adds_space`: whether the model puts a space before each text. The text's first byte counts as `start`.
    """
    raw, unknown = text.encode(), sentencepiece.unk_id()
    position: int | None = -1 if adds_space else 0
    pieces = []
    for token_id, name in interruptible(zip(token_ids, sentencepiece.id_to_piece(token_ids), strict=True)):
        span = None if position is None or token_id == unknown else _consume(raw, position, name)
        if span is None:
            position = None
            pieces.append(Piece(token_id, name, None, None))
        else:
            first, position = span
            pieces.append(Piece(token_id, name, start + first, start + position))
    return pieces


def check_length(num_tokens: int) -> None:
    """Raise ValueError for a text of more tokens than are read."""
    if num_tokens > MAX_PROMPT_TOKENS:
        raise ValueError(
            f"the text takes {num_tokens} tokens or more, and at most {MAX_PROMPT_TOKENS} are read. Shorten it"
        )


def _consume(raw: bytes, position: int, name: str) -> tuple[int, int] | None:
    """Return (the piece's first byte that is not a space, the byte behind its last); None where `raw` has another text
    there.

    The space that sentencepiece puts before the text is at -1.
    """
    byte = _BYTES.get(name)
    if byte is not None:
        is_there = position >= 0 and raw[position : position + 1] == bytes((byte,))
        return (position, position + 1) if is_there else None
    body, begin = name.lstrip(SPACE), position
    for _ in range(len(name) - len(body)):
        behind = _behind_space(raw, position)
        if behind is None:
            return None
        position = behind
    if not body:
        return max(begin, 0), position
    start = position
    for index, part in enumerate(body.split(SPACE)):  # few pieces have a space inside
        behind = position if index == 0 else _behind_space(raw, position)
        encoded = part.encode()
        if behind is None or behind < 0 or not raw.startswith(encoded, behind):
            return None
        position = behind + len(encoded)
    return start, position


def _behind_space(raw: bytes, position: int) -> int | None:
    if position < 0:
        return 0
    if raw.startswith(b" ", position):
        return position + 1
    return position + len(_SPACE_BYTES) if raw.startswith(_SPACE_BYTES, position) else None
