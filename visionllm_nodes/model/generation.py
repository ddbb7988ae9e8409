"""Writes text behind prompts, token by token, for several prompts at a time; tool tokens bring their learned embeddings along.

Source: facts of upstream's generation (`prepare_inputs_for_generation` and the cached branch of forward in modeling_visionllmv2.py): a tool
token is fed together with its [EMB]s in one step of 5 or 65 places, and the next token follows the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .language_model import KeyValues
from .special_tokens import EMBEDDINGS, PATCH, REGION
from .super_link import TABLE_OF
from .visionllm import Prompt, VisionLLM

ROOM = 256  # tokens that the cache takes before it is copied into a larger one

Choose = Callable[[torch.Tensor], torch.Tensor]


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """logits [B, vocabulary] -> the likeliest ids [B]."""
    return logits.argmax(dim=-1)


def sampling(temperature: float, top_p: float, seed: int) -> Choose:
    """Draws from the likeliest tokens that together have the probability `top_p` (0 < top_p <= 1); the same seed gives the same text."""
    generator = torch.Generator().manual_seed(seed)

    def choose(logits):
        odds, ids = (logits.float().cpu() / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        odds = odds.masked_fill(odds.cumsum(dim=-1) - odds >= top_p, 0.0)
        return ids.gather(-1, torch.multinomial(odds, 1, generator=generator)).squeeze(-1).to(logits.device)

    return choose


@dataclass(frozen=True)
class ToolCall:
    """A tool token that was written: what it is, how many ids came before it, and the states [count, width] its decoder is asked with."""

    tool: str
    before: int
    states: torch.Tensor


@dataclass
class Answer:
    """What is written so far: ids without [EMB]s and without the end token."""

    ids: list[int] = field(default_factory=list)
    tools: list[ToolCall] = field(default_factory=list)
    finished: bool = False  # by the end token; else the limit stopped it


class Writing:
    """One answer per prompt. Iterating writes a token of each, and gives the new ids (None where an answer is finished)."""

    def __init__(
        self,
        model: VisionLLM,
        prompts: Sequence[Prompt],
        id_of: Mapping[str, int],
        past: KeyValues | None = None,
        *,
        end: int,
        limit: int,
        choose: Choose = greedy,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        after_layer: Callable[[], None] = lambda: None,
    ):
        """`past`: what stands before all prompts; `end`: the id that ends an answer; `limit`: tokens at most; `device`: see `VisionLLM.embed`."""
        self.answers = [Answer() for _ in prompts]
        self._model, self._end, self._limit, self._choose, self._after_layer = model, end, limit, choose, after_layer
        self._tool_of = {id_of[tool]: tool for tool in TABLE_OF if TABLE_OF[tool] in model.super_link.config.rows}
        self._never = [id_of[name] for name in EMBEDDINGS]  # they are put in, not chosen
        states, cache = model.read(
            prompts, id_of[PATCH], id_of[REGION], past, keep=True, dtype=dtype, device=device, after_layer=after_layer
        )
        self._dtype = states.dtype
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=states.device)
        before = past.length if past else 0
        self._cache = cache.with_room(ROOM)
        self._valid = torch.arange(cache.length, device=states.device)[None] < (before + lengths)[:, None]
        self._next_position = before + lengths
        self._last = states[torch.arange(len(prompts), device=states.device), lengths - 1]

    def __iter__(self) -> Iterator[list[int | None]]:
        for left in reversed(range(self._limit)):
            if all(answer.finished for answer in self.answers):
                return
            yield self._write_one(last=not left)

    def run(self) -> list[Answer]:
        """Writes to the end."""
        for _ in self:
            pass
        return self.answers

    def _write_one(self, last: bool) -> list[int | None]:
        logits = self._model.language.logits(self._last)
        logits[:, self._never] = -torch.inf
        chosen = self._choose(logits).tolist()
        new: list[int | None] = []
        for answer, id in zip(self.answers, chosen):
            answer.finished = answer.finished or id == self._end
            new.append(None if answer.finished else id)
        for answer, id in zip(self.answers, new):
            if id is not None:
                answer.ids.append(id)
        fed = [
            id if id in self._tool_of or not last else None for id in new
        ]  # the last word's states are of no use, a tool's are
        if any(id is not None for id in fed):
            self._feed(fed)
        return new

    def _feed(self, ids: list[int | None]) -> None:
        """One step of the language model; rows that have fewer places than others are padded, and the padding is never looked at."""
        device, rows = self._last.device, []
        words = self._model.language.embed_tokens(
            torch.tensor([0 if id is None else id for id in ids], device=device)
        ).to(self._dtype)
        for word, id in zip(words, ids):
            if id is None:
                rows.append(word[None][:0])
            elif id in self._tool_of:
                rows.append(torch.cat((word[None], self._model.super_link.rows(self._tool_of[id]).to(word))))
            else:
                rows.append(word[None])
        counts = torch.tensor([len(row) for row in rows], device=device)
        most = int(counts.max())
        step = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        places = torch.arange(most, device=device)
        self._valid = torch.cat((self._valid, places < counts[:, None]), dim=1)
        if self._cache.layers[0][0].shape[2] < self._cache.length + most:
            self._cache = self._cache.with_room(most + ROOM)
        states, self._cache = self._model.language(
            step,
            self._cache,
            keep=True,
            mask=None if self._valid.all() else self._valid,
            positions=self._next_position[:, None] + places,
            after_layer=self._after_layer,
        )
        self._next_position = self._next_position + counts
        for number, (answer, id) in enumerate(zip(self.answers, ids)):
            if id is None:
                continue
            if id in self._tool_of:
                answer.tools.append(
                    ToolCall(self._tool_of[id], len(answer.ids) - 1, states[number, 1 : len(rows[number])])
                )
            self._last[number] = states[number, len(rows[number]) - 1]
