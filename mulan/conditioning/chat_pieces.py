"""A chat model's tokenizer as MuLan's windows use it.

**The rule of small text encoders.** It is that of InternVL's LLaMA, as near as a chat model's tokenizer allows. A
window is a row per token:

    bos, "summarize:", the text, eos, padding

- bos is ``<s>`` where the model has it (InternLM2), else ``<|im_start|>`` (Qwen). A row that is always the same stands
  first because such models gather what belongs to no token there.
- eos is ``<|im_end|>``, padding ``<|endoftext|>`` (Qwen) or ``</s>`` (InternLM2).
- "summarize:" stands where it stands for InternVL's LLaMA: before prompts, not before negatives and empty prompts of
  SD1.5, SD2.1 and PixArt. It is tokenized by itself, so that no character of the text merges with its colon. Its rows,
  as many as the tokenizer makes, are cut from the states, by position.
- No system prompt, no turns: an adapter reads states, not answers, and every row that is the same for all prompts costs
  time.
- Behind the cut there are as many rows as the family's adapters read of InternVL's LLaMA: 77 (SD1.5, SD2.1) or 80
  (SDXL, PixArt). Longer prompts go on in another window.
- Padding stands behind. No row sees it, not even its own, and it sees all others, so its states sum the prompt up
  differently at each position. Adapters read them too.
- The states are those of the last layer, behind the final norm.

Special tokens that are written out in a prompt act as such, each as one id; so does padding's, whose row is masked.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoints.language_tokenizers import (
    END,
    END_OF_TEXT,
    START,
    BytePairTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)
from .tokenizer import PREFIX, SPACE, Frame, Piece, align, check_length


class ChatPieces:
    """Text -> pieces with their positions, by the tokenizer of a chat file.

    `files`: what the tokenizer was read from, by name. Raises ValueError where it lacks what a window needs.
    """

    def __init__(self, tokenizer: Tokenizer, files: dict[str, bytes]):
        self._tokenizer, self._files = tokenizer, files
        self.literals = tokenizer.added_tokens()
        self.prefix = [piece._replace(offset=None, end=None) for piece in self.encode(PREFIX)]
        self.frame = Frame(
            self._first_of("<s>", START),
            self._first_of(END),
            self._first_of(*END_OF_TEXT),
            tuple(piece.id for piece in self.prefix),
        )

    def encode(self, text: str, offset: int = 0) -> list[Piece]:
        """Return the pieces of the text, without bos and eos; the text's first byte counts as `offset`.

        Raises ValueError for a text of more than `MAX_PROMPT_TOKENS`.
        """
        pieces: list[Piece] = []
        if isinstance(self._tokenizer, SentencePieceTokenizer):
            for part, ids in self._tokenizer.parts(text):
                check_length(len(pieces) + len(ids))
                if part in self.literals:
                    pieces.append(Piece(ids[0], part, offset, offset + len(part.encode())))
                else:
                    pieces += align(self._tokenizer.pieces, ids, part, offset, self._tokenizer.adds_space)
                offset += len(part.encode())
        elif isinstance(self._tokenizer, BytePairTokenizer):
            raw, spans = text.encode(), self._tokenizer.spans(text)
            check_length(len(spans))
            pieces += [_byte_level(token_id, content, raw, at, offset) for token_id, content, at in spans]
        return pieces

    def encode_prefixed(self, text: str, keep_merged: bool) -> list[Piece]:
        """Return the pieces of `PREFIX`, then those of the text: nothing merges, whatever `keep_merged` says."""
        return [*self.prefix, *self.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; special tokens are left out."""
        return self._tokenizer.decode(list(ids))

    def piece(self, token_id: int) -> str:
        """Return the piece of a token id."""
        return self._tokenizer.id_to_token(token_id) or ""

    def files(self) -> dict[str, bytes]:
        """Return what a file must hold for the tokenizer to be read again, by the names of its tensors."""
        return self._files

    def _first_of(self, *names: str) -> int:
        found = next((id for name in names if (id := self._tokenizer.token_to_id(name)) is not None), None)
        if found is None:
            raise ValueError(f"it has no token {' or '.join(names)}")
        return found


def _byte_level(token_id: int, content: bytes, raw: bytes, at: tuple[int, int], offset: int) -> Piece:
    """Return a piece of a byte-level tokenizer, named as sentencepiece names its own; `at` are bytes of the text."""
    first, end = at
    while first < end - 1 and raw[first : first + 1] == b" ":
        first += 1
    try:
        return Piece(token_id, content.decode().replace(" ", SPACE), offset + first, offset + end)
    except UnicodeDecodeError:
        name = content.decode(errors="backslashreplace").replace(" ", SPACE)
        return Piece(token_id, name, offset + first, offset + end, content)
