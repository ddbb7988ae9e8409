"""What the trainings around the tiny text encoder share: its shape, and texts as rows of ids and of states.

The encoder itself is trained in `emoji_world/text_training.py`, for both worlds at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sentencepiece
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

WINDOW = 80
PREFIX = "summarize:"
PREFIX_PIECES = 3
BOS, EOS, PAD = 1, 2, 0
WIDTH, INTERMEDIATE, LAYERS, HEADS = 128, 320, 3, 4


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder with its tokenizer."""

    model: LlamaModel
    tokenizer: sentencepiece.SentencePieceProcessor


def token_rows(
    tokenizer: sentencepiece.SentencePieceProcessor, texts: list[str], longest: int = WINDOW
) -> list[list[int]]:
    """Texts, with their prefix where they have one -> ids with bos and eos, not padded."""
    return [[BOS, *ids[: longest - 2], EOS] for ids in tokenizer.encode(texts)]


def llama(
    vocabulary: int, width: int = WIDTH, intermediate: int = INTERMEDIATE, layers: int = LAYERS, heads: int = HEADS
) -> LlamaModel:
    """A text encoder: LLaMA with full attention, without the language-model head."""
    return LlamaModel(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            rms_norm_eps=1e-6,
            max_position_embeddings=WINDOW,
            pad_token_id=None,
            use_cache=False,
        )
    )


def states_of(model: nn.Module, rows: list[list[int]], padding: torch.Tensor) -> torch.Tensor:
    """Ids -> states [B, longest + len(padding), width]; the rows past the words are those of the padding positions
    asked for.

    Padding is never attended to, so leaving some of it out changes no other row.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest + len(padding) - len(row)) for row in rows])
    positions = torch.cat([torch.arange(longest), padding])
    return model(ids, attention_mask=(ids > PAD).long(), position_ids=positions.expand(len(rows), -1)).last_hidden_state


def typed(text: str, rng: np.random.Generator) -> str:
    """A caption as people type it: sometimes with a capital or a full stop; sometimes without the prefix, as negatives
    are encoded.
    """
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.1:
        text += "."
    return text if rng.random() < 0.1 else PREFIX + text
