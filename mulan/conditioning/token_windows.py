"""The windows of tokens that the text encoder reads: what a tokenizer, of MuLan or not, hands over, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import torch

from .families import Family
from .tokenizer import Frame

# A key beside the token keys, where several prompts go in with one call: the `PromptSpan` of each.
# Stock nodes never see it, only `clip.encode_prompts` sets it.
PROMPT_SPANS = "mulan_prompt_spans"
OWN_TOKENS = "Encode what this CLIP's own tokenizer gives; nodes that work on CLIP-L's tokens cannot be used with it."

MAX_TOKEN_WEIGHT = 1e6  # the prompt's own are at most 100; other nodes may scale them


class PromptSpan(NamedTuple):
    """Which of the windows in one call are a prompt's: the next `num_windows`."""

    num_windows: int
    is_negative: bool


@dataclass(frozen=True)
class Window:
    """One window of a prompt: a row per token, padding included. The prefix, where it has one, stands behind bos."""

    input_ids: tuple[int, ...]
    weights: tuple[float, ...]
    prefix_ids: tuple[int, ...]  # none where the prompt goes in bare
    frame: Frame

    @property
    def empty_ids(self) -> tuple[int, ...]:
        """The ids of a window of this form without a prompt."""
        ids = (self.frame.bos, *self.prefix_ids, self.frame.eos)
        return (*ids, *[self.frame.pad] * (len(self.input_ids) - len(ids)))

    @property
    def is_empty(self) -> bool:
        return self.input_ids == self.empty_ids

    @property
    def is_weighted(self) -> bool:
        return any(weight != 1.0 for weight in self.weights)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt's own ids: between the prefix and the last eos."""
        return self.input_ids[1 + len(self.prefix_ids) : self._end - 1]

    @property
    def num_rows(self) -> int:
        """The rows that are not padding, the prefix's not counted: to the last eos, as in the tokenizer's mask of
        upstream.
        """
        return self._end - len(self.prefix_ids)

    @property
    def _end(self) -> int:
        """Behind the last eos."""
        return len(self.input_ids) - self.input_ids[::-1].index(self.frame.eos)

    def without_prefix(self, states: torch.Tensor) -> torch.Tensor:
        """Cut the prefix's rows from this window's states [T, states_size], by position, as upstream does."""
        return torch.cat((states[:1], states[1 + len(self.prefix_ids) :])) if self.prefix_ids else states


def window_rows(tokens, family: Family) -> Sequence[Sequence]:
    """Return the windows among a tokenizer's tokens. Raises ValueError where there are none."""
    key = family.token_keys[0]
    keys = list(tokens) if isinstance(tokens, Mapping) else []
    if key not in keys:
        raise ValueError(
            f"the tokens have no key {key!r}, which MuLan's CLIP for {family.title} reads; they have "
            f"{', '.join(map(repr, keys)) or 'none'}. {OWN_TOKENS}"
        )
    windows = tokens[key]
    if not isinstance(windows, Sequence) or not windows or not all(isinstance(w, list | tuple) for w in windows):
        raise ValueError(f"the tokens hold no windows under {key!r}. {OWN_TOKENS}")
    return windows


def read_window(rows: Sequence[tuple], family: Family, frame: Frame, vocab_size: int) -> Window:
    """Read one window of a tokenizer's (id, weight) rows. Raises ValueError where it is none of this family's.

    Only windows with the prefix have the family's longer length.
    """
    input_ids, weights = [], []
    for token_id, weight in map(_row, rows):
        if not 0 <= token_id < vocab_size:
            raise ValueError(f"the tokens hold the id {token_id}, which the text encoder does not know. {OWN_TOKENS}")
        input_ids.append(token_id)
        weights.append(weight)
    lengths = family.windows(len(frame.prefix))
    prefix_ids = frame.prefix if len(rows) == lengths[0] else ()
    # The prefix's last row may be another token, with the prompt's first characters in it.
    begins = (frame.bos, *prefix_ids[:-1])
    if len(rows) not in lengths or tuple(input_ids[: len(begins)]) != begins or frame.eos not in input_ids:
        raise ValueError(
            f"the tokens are of another CLIP: {len(rows)} in a window, the first {input_ids[:4]}. MuLan's for "
            f"{family.title} are {' or '.join(map(str, sorted(set(lengths))))} and begin with {frame.bos}. "
            f"{OWN_TOKENS}"
        )
    return Window(tuple(input_ids), tuple(weights), prefix_ids, frame)


def without_empty_tail(windows: list[Window]) -> list[Window]:
    """Drop empty windows at the end: CLIPTextEncodeSDXL fills the shorter of its two texts with them."""
    while len(windows) > 1 and windows[-1].is_empty:
        windows = windows[:-1]
    return windows


def _row(row) -> tuple[int, float]:
    """Read one row (id, weight, ...) of a window. Raises ValueError where it is none."""
    if not isinstance(row, list | tuple) or len(row) < 2:
        raise ValueError(f"the tokens hold a {type(row).__name__} where (id, weight) belongs. {OWN_TOKENS}")
    token_id, weight = row[:2]
    if not isinstance(token_id, Integral):
        kind = "an embedding" if isinstance(token_id, torch.Tensor) else f"a {type(token_id).__name__}"
        raise ValueError(
            f"the tokens hold {kind} where an id belongs: textual inversions are made for CLIP. {OWN_TOKENS}"
        )
    try:
        weight = float(weight)
    except (TypeError, ValueError):
        weight = math.nan
    if not abs(weight) <= MAX_TOKEN_WEIGHT:  # nor NaN
        raise ValueError(
            f"a weight among the tokens is {str(row[1])[:40]}, expected a number from {-MAX_TOKEN_WEIGHT:g} to "
            f"{MAX_TOKEN_WEIGHT:g}"
        )
    return int(token_id), weight
