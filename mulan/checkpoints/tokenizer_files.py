"""What a tokenizer's files hold, checked: a sentencepiece model, and the tokens that were added to a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sentencepiece

MAX_TOKEN_ID = 2**24


def load_pieces(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """Return the sentencepiece model that bytes are. Raises ValueError for other bytes."""
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
    except RuntimeError:
        pieces = None
    if pieces is None or not len(pieces):
        raise ValueError(f"it is not a sentencepiece model ({len(model)} bytes)")
    return pieces


def read_vocabulary(vocabulary: Mapping[str, Any], where: str) -> dict[str, int]:
    """Return the ids of tokens by name. Raises ValueError, which begins with `where`, where one is no id of its own."""
    ids: dict[int, str] = {}
    for name, value in vocabulary.items():
        id = read_id(value)
        if id is None or id in ids or not _is_name(name):
            same = f", which {ids[id]!r:.40} has too" if id in ids else ""
            raise ValueError(
                f"{where} gives {name!r:.40} the id {value!r:.40}{same}: expected a whole number of its own"
            )
        ids[id] = name
    return {name: id for id, name in ids.items()}


def read_added_tokens(config: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tokens that were added to a vocabulary, by name: `id`, and the flags of those that have some.

    config: what tokenizer_config.json holds; its `added_tokens_decoder` counts where both name a token. plain: what
    added_tokens.json holds. Raises ValueError.
    """
    where = "the added_tokens_decoder of tokenizer_config.json"
    decoder = config.get("added_tokens_decoder")
    if decoder is None:
        decoder = {}
    if not isinstance(decoder, Mapping):
        raise ValueError(f"{where} is a {type(decoder).__name__}, expected an object")
    tokens: dict[str, dict[str, Any]] = {name: {"id": id} for name, id in plain.items()}
    for id, token in decoder.items():
        entry = {"content": token} if isinstance(token, str) else token
        if not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str):
            raise ValueError(f"{where} has {id!r:.40}: {token!r:.60}, expected a token with its `content`")
        tokens[entry["content"]] = {**entry, "id": id}
    ids = read_vocabulary({name: token["id"] for name, token in tokens.items()}, "the list of added tokens")
    return {name: {**token, "id": ids[name]} for name, token in tokens.items()}


def read_id(value: Any) -> int | None:
    """Return the id that a JSON value is, a number or one as text; None where it is none."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKEN_ID else None


def _is_name(name: str) -> bool:
    return bool(name) and not any("\ud800" <= character <= "\udfff" for character in name)
