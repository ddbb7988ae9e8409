"""The language model that generates: ComfyUI's LLaMA, read in parts, with the checks of sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import comfy.ops
import torch
from comfy.text_encoders import llama
from torch import nn

from ..boundary.limits import PREFILL_TOKENS
from ..checkpoints.language_model import LanguageConfig

MIN_TEMPERATURE = 1e-4  # below, logits divided by it would leave the range of numbers


def check_temperature(temperature: float) -> float:
    """Return a temperature that logits can be divided by: 0 is one that leaves no choice.

    Raises ValueError for one below 0, and for what is no number.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a number from 0 on, not {temperature}")
    return max(temperature, MIN_TEMPERATURE)


def check_penalty(penalty: float) -> float:
    """Return a repetition penalty that logits can be divided by. Raises ValueError for 0, below, and no number."""
    if not 0 < penalty < math.inf:
        raise ValueError(f"repetition_penalty must be a number above 0, not {penalty}; 1 is off")
    return penalty


def penalize(logits: torch.Tensor, token_ids: Sequence[int], penalty: float) -> torch.Tensor:
    """Return logits [1, vocab_size] with those of `token_ids` lowered: divided by the penalty, or multiplied below 0.

    ComfyUI does it only where it draws; the authors' code, transformers, also where the likeliest token is taken.
    """
    if penalty == 1 or not token_ids:
        return logits
    seen = torch.tensor(sorted(set(token_ids)), device=logits.device)
    rows = logits[:, seen]
    return logits.index_copy(1, seen, torch.where(rows < 0, rows * penalty, rows / penalty))


def causal_bias(length: int, count: int, like: torch.Tensor) -> torch.Tensor:
    """Return what attention adds to the scores of `count` tokens behind `length` others, [1, 1, count, length + count]:
    no token sees a later one.
    """
    bias = torch.zeros(1, 1, count, length + count, dtype=like.dtype, device=like.device)
    visible = torch.ones(count, length + count, dtype=torch.bool, device=like.device).tril_(length)
    return bias.masked_fill_(visible.logical_not_(), torch.finfo(like.dtype).min / 4)


def causal_attention(q, k, v, heads, mask=None, skip_reshape=True, enable_gqa=False) -> torch.Tensor:
    """Attend as ComfyUI's `optimized_attention` does: q [B, heads, T, D], k and v of as many or fewer heads.

    Without a mask no token sees a later one: either nothing stands before the T, or T is 1. No mask of T x T is made
    then.
    """
    attended = comfy.ops.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1, enable_gqa=enable_gqa
    )
    return attended.transpose(1, 2).flatten(2)


class _Llama(llama.Llama2_):
    """ComfyUI's LLaMA, but a prompt is read in parts: a mask would be as high as the prompt is long."""

    def forward(self, x, attention_mask=None, embeds=None, past_key_values=None, **others):
        if embeds is None or attention_mask is not None or not past_key_values:
            return super().forward(
                x, attention_mask=attention_mask, embeds=embeds, past_key_values=past_key_values, **others
            )
        for part in embeds.split(PREFILL_TOKENS, dim=1):
            x, past_key_values = self._read(part, past_key_values)
        norm: Any = self.norm
        return norm(x[:, -1:]), None, past_key_values  # nothing else is sampled from

    def _read(self, x: torch.Tensor, past: list) -> tuple[torch.Tensor, list]:
        length, count = self.get_past_len(past), x.shape[1]
        angles = self.compute_freqs_cis(torch.arange(length, length + count, device=x.device)[None], x.device)
        bias = causal_bias(length, count, x) if length and count > 1 else None
        present = []
        for layer, of_layer in zip(self.layers, past, strict=True):
            x, kept = layer(
                x=x,
                attention_mask=bias,
                freqs_cis=angles,
                optimized_attention=causal_attention,
                past_key_value=of_layer,
            )
            present.append(kept)
        return x, present


class LanguageModel(llama.BaseQwen3, llama.BaseGenerate, nn.Module):
    """ComfyUI's generation loop. `on_token` is called after each token with all ids so far.

    Raises ArithmeticError where the logits are not finite: the weights are damaged.
    """

    on_token: Callable[[list[int]], None] | None = None

    def __init__(self, config: LanguageConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        self.model = _Llama(config, device=device, dtype=dtype, ops=operations)

    def sample_token(
        self,
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        token_history,
        *arguments,
        do_sample=True,
        **options,
    ):
        check_penalty(repetition_penalty)
        is_finite = logits.isfinite().all()
        logits = torch.where(is_finite, logits, 0.0)  # a draw among NaN would end a card's process
        if not do_sample:
            logits = penalize(logits, token_history, repetition_penalty)
        token = super().sample_token(
            logits,
            check_temperature(temperature),
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            token_history,
            *arguments,
            do_sample=do_sample,
            **options,
        )
        token_id, finite = torch.cat((token.flatten(), is_finite[None].to(token))).tolist()  # a card is waited for once
        if not finite:
            raise ArithmeticError("logits that are not finite")
        if self.on_token is not None:
            self.on_token([*token_history, token_id])
        return token
