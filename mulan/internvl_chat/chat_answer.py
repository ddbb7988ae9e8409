"""One question to a chat model's CLIP, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..boundary.growing_text import GrowingText
from .chat_history import Exchange
from .chat_preprocessing import MAX_TILES
from .chat_template import split_thinking


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 takes the likeliest; `top_k` 0 and `repetition_penalty` 1 are off."""

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 0.9
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0


def answer(
    clip: Any,
    question: str,
    images: Sequence[torch.Tensor],
    frames: Sequence[torch.Tensor],
    history: Sequence[Exchange],
    *,
    system: str | None = None,
    thinking: bool = False,
    tiles: int = MAX_TILES,
    sampling: Sampling,
    with_tags: bool = False,
    on_text: Callable[[str], None],
) -> tuple[str, str]:
    """Return what the model thought and its answer. `on_text` gets the text so far after each token.

    `clip` has `ChatPrompts` as its tokenizer; the arguments before `sampling` are that one's. with_tags: keep special
    tokens such as <box> in the answer.
    """
    tokens = clip.tokenize(
        question, images=images, frames=frames, history=history, system=system, thinking=thinking, tiles=tiles
    )
    so_far = GrowingText(clip.tokenizer.tokenizer.decode)
    with clip.cond_stage_model.streaming_to(lambda ids: on_text(so_far(ids).strip())):
        ids = clip.generate(
            tokens,
            do_sample=sampling.temperature > 0,
            max_length=sampling.max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
        )
    if with_tags:
        ids = [id for id in ids if id not in clip.cond_stage_model.stop_tokens]
    return split_thinking(clip.decode(ids, skip_special_tokens=not with_tags))
