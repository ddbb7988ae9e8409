"""Sentencepiece models like LLaMA's, of texts of our own."""

from __future__ import annotations

import io
from collections.abc import Iterable

import sentencepiece


def train_bpe(texts: Iterable[str], pieces: int, **options) -> bytes:
    """Train a BPE model of so many pieces, with bytes for what they lack; <unk>, <s> and </s> are 0 to 2.

    options: sentencepiece's own, in place of these.
    """
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": False,
        "character_coverage": 1.0,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": -1,
        "minloglevel": 2,
        "num_threads": 1,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=pieces, **settings | options
    )
    return model.getvalue()
