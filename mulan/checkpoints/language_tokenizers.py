"""The chat models' tokenizers: byte-level BPE (Qwen), and InternLM2's sentencepiece with added tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, groupby
from typing import Any, Protocol

from ..boundary.files import parse_json
from .tensor_files import CONFIG, TensorFile, WrongFileError, describe_path, read_beside
from .tokenizer_files import load_pieces, read_added_tokens, read_vocabulary

START, END = "<|im_start|>", "<|im_end|>"  # around each turn of a dialogue
# Around an encoded image, which takes the place of the middle one
IMAGE_START, IMAGE_CONTEXT, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
REQUIRED_TOKENS = (START, END, IMAGE_START, IMAGE_CONTEXT, IMAGE_END)
END_OF_TEXT = ("<|endoftext|>", "</s>")  # besides END, the end of a text in Qwen's and InternLM2's vocabulary
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
)
# How Qwen2 splits a text before merging bytes: contractions, words, single digits, punctuation, white space.
SPLIT_PATTERN = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"""
    r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)


class Tokenizer(Protocol):
    """Text <-> ids."""

    vocab_size: int  # rows that an embedding table needs

    def encode(self, text: str) -> list[int]:
        """Return ids, with the token that begins a text where the model has one. Added tokens are one id each."""
        ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text; bytes that are no whole character become U+FFFD."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """Return the id of one token, None for an unknown one."""
        ...

    def id_to_token(self, token_id: int) -> str | None:
        """Return the name of one token, None for an unknown one."""
        ...

    def added_tokens(self) -> dict[str, int]:
        """Return the tokens that a text is split at, each with its id."""
        ...


# Byte-level BPE writes each byte as a character: itself where it can be seen, else one from 256 on, in order
_SEEN = [byte for byte in range(256) if chr(byte).isprintable() and not chr(byte).isspace()]
_UNSEEN = [byte for byte in range(256) if byte not in _SEEN]
_BYTE_OF = {chr(byte): byte for byte in _SEEN} | {chr(256 + index): byte for index, byte in enumerate(_UNSEEN)}


def _token_bytes(token: str) -> bytes:
    """Return the bytes that a token of byte-level BPE stands for."""
    return b"".join(
        bytes((_BYTE_OF[character],)) if character in _BYTE_OF else character.encode() for character in token
    )


class BytePairTokenizer:
    """Byte-level BPE, on the `tokenizers` library, which ComfyUI requires."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.token_to_id = tokenizer.token_to_id
        self.id_to_token = tokenizer.id_to_token
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    @classmethod
    def from_json(cls, text: str) -> BytePairTokenizer:
        """Read what tokenizer.json holds. Raises ValueError for anything else."""
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"not a tokenizer that the library `tokenizers` reads ({str(error)[:100]})") from error
        if not isinstance(tokenizer.model, BPE) or not tokenizer.get_vocab(with_added_tokens=True):
            raise ValueError("tokenizer.json holds another kind of tokenizer than a byte-pair encoding")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer)

    @classmethod
    def from_vocabulary(
        cls, vocabulary: Mapping[str, int], merges: str, added: Mapping[str, Mapping]
    ) -> BytePairTokenizer:
        """Build Qwen2's, from what vocab.json and merges.txt hold.

        `added`: tokens with `id` and flags. Raises ValueError where they do not fit.
        """
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
        from tokenizers.models import BPE

        lines = (line for line in merges.split("\n") if line.strip() and not line.startswith("#version"))
        pairs: Any = [tuple(line.split()) for line in lines]  # a line without two parts is refused by BPE
        try:
            tokenizer = Tokenizer(BPE(dict(vocabulary), pairs, fuse_unk=False, byte_fallback=False))
        except Exception as error:
            raise ValueError(f"the merges do not fit the vocabulary ({str(error)[:100]})") from error
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        for name, token in sorted(added.items(), key=lambda item: item[1]["id"]):
            flags = {flag: bool(token.get(flag, False)) for flag in ("lstrip", "rstrip", "single_word", "normalized")}
            tokenizer.add_tokens([AddedToken(name, special=bool(token.get("special", True)), **flags)])
            if tokenizer.token_to_id(name) != token["id"]:
                raise ValueError(
                    f"the token {name} must have the id {token['id']}, but behind this vocabulary it has "
                    f"{tokenizer.token_to_id(name)}"
                )
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def added_tokens(self) -> dict[str, int]:
        return {token.content: id for id, token in self._tokenizer.get_added_tokens_decoder().items()}

    def spans(self, text: str) -> list[tuple[int, bytes, tuple[int, int]]]:
        """Return the tokens of a text, nothing added: id, the bytes it stands for, and where its characters begin and
        end in the text's UTF-8 bytes.
        """
        encoded, added = self._tokenizer.encode(text, add_special_tokens=False), self.added_tokens()
        at = [0, *accumulate(len(character.encode()) for character in text)]
        return [
            (id, token.encode() if token in added else _token_bytes(token), (at[first], at[end]))
            for id, token, (first, end) in zip(encoded.ids, encoded.tokens, encoded.offsets, strict=True)
        ]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)


class SentencePieceTokenizer:
    """InternLM2's: `<s>`, then each part between added tokens by itself.

    `model`: the bytes of tokenizer.model. Raises ValueError for bytes that are not a sentencepiece model.
    """

    def __init__(self, model: bytes, added: Mapping[str, int]):
        self.pieces = load_pieces(model)
        self.adds_space = self.pieces.id_to_piece(self.pieces.encode("a"))[0].startswith("\u2581")
        unknown = self.pieces.unk_id()
        if min(unknown, self.pieces.bos_id()) < 0:
            raise ValueError("its sentencepiece model has no <s> or <unk>")
        own = {
            name: id
            for name in ("<s>", "</s>", "<unk>")
            if (id := self.pieces.piece_to_id(name)) != unknown or name == "<unk>"
        }
        self._ids = {**own, **added}
        self._names = {id: name for name, id in self._ids.items()}
        self._split = re.compile(
            "(" + "|".join(re.escape(name) for name in sorted(self._ids, key=len, reverse=True)) + ")"
        )
        self.vocab_size = max(len(self.pieces), 1 + max(self._names))

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        return self._names.get(token_id) or (self.pieces.id_to_piece(token_id) if token_id < len(self.pieces) else None)

    def added_tokens(self) -> dict[str, int]:
        return dict(self._ids)

    def encode(self, text: str) -> list[int]:
        return [self.pieces.bos_id(), *(id for _, ids in self.parts(text) for id in ids)]

    def parts(self, text: str) -> Iterator[tuple[str, list[int]]]:
        """Yield the parts of a text between its added tokens, and these, with the ids of each."""
        for part in filter(None, self._split.split(text)):
            yield part, [self._ids[part]] if part in self._ids else self.pieces.encode(part)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(
            self.pieces.decode(list(run)) if is_piece else "".join(self._names.get(id, "") for id in run)
            for is_piece, run in groupby(token_ids, self._is_piece)
            if is_piece or not skip_special_tokens
        )

    def _is_piece(self, token_id: int) -> bool:
        """Return whether an id stands for text: the embedding table may have rows that no token has."""
        return token_id < len(self.pieces) and token_id not in self._names


def tokenizer_file(file: TensorFile, name: str) -> bytes | None:
    """Return what one of `TOKENIZER_FILES` holds: those inside a converted file, else those of the folder.

    None where there is none.
    """
    if CONFIG in file.metadata:
        return file.read_bytes(name) if name in file.shapes else None
    return read_beside(file.path if file.path.is_dir() else file.path.parent, name)


def read_tokenizer(file: TensorFile, num_rows: int, source: str) -> Tokenizer:
    """Return the tokenizer inside a file or beside it, whose embedding table has `num_rows`; `source` has others.

    Raises WrongFileError where there is none, or it is another model's.
    """
    advice = f"Keep the tokenizer's files of the published folder, from {source}, with the weights."
    try:
        tokenizer = load_tokenizer(partial(tokenizer_file, file))
    except WrongFileError:
        raise
    except ValueError as error:
        raise WrongFileError(
            f"{describe_path(file.path)} has no tokenizer that can be used: {error}. {advice}"
        ) from error
    if tokenizer.vocab_size > num_rows:
        raise WrongFileError(
            f"{describe_path(file.path)}: its tokenizer knows {tokenizer.vocab_size} tokens, but its language model "
            f"embeds {num_rows}: it is another model's. {advice}"
        )
    return tokenizer


def load_tokenizer(read: Callable[[str], bytes | None]) -> Tokenizer:
    """Load the tokenizer of a checkpoint.

    `read` gives what one of `TOKENIZER_FILES` holds, None where there is none. Raises ValueError that says what is
    wrong.
    """
    contents = {name: read(name) for name in TOKENIZER_FILES}
    whole, vocabulary, merges, model = (contents[name] for name in TOKENIZER_FILES[:4])
    tokenizer: Tokenizer
    if whole:
        used, tokenizer = "tokenizer.json", BytePairTokenizer.from_json(whole.decode("utf-8-sig", "replace"))
    elif vocabulary and merges:
        used = "vocab.json"
        tokenizer = BytePairTokenizer.from_vocabulary(
            read_vocabulary(_json(used, vocabulary), used), merges.decode("utf-8", "replace"), _added(contents)
        )
    elif model is not None:
        used = "tokenizer.model"
        tokenizer = SentencePieceTokenizer(model, {name: token["id"] for name, token in _added(contents).items()})
    else:
        raise ValueError("there is neither tokenizer.json, nor vocab.json with merges.txt, nor tokenizer.model")
    missing = [name for name in REQUIRED_TOKENS if tokenizer.token_to_id(name) is None]
    if missing:
        beside = "" if used == TOKENIZER_FILES[0] else ": keep added_tokens.json and tokenizer_config.json with it"
        raise ValueError(f"{used} lacks {', '.join(missing)}{beside}")
    return tokenizer


def _added(files: Mapping[str, bytes | None]) -> dict[str, dict]:
    """Return the tokens that were added to a vocabulary, with `id` and flags."""
    config, plain = (
        _json(name, content) if (content := files[name]) else {}
        for name in ("tokenizer_config.json", "added_tokens.json")
    )
    return read_added_tokens(config, plain)


def _json(name: str, content: bytes) -> dict:
    try:
        parsed = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{name} holds a {type(parsed).__name__}, expected an object")
    return parsed
