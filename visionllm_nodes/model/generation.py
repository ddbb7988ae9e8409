"""Text generation for several prompts at a time; tool tokens bring their learned embeddings along.

Source: facts of upstream's generation (`prepare_inputs_for_generation` and the cached branch of forward in
modeling_visionllmv2.py): a tool token is fed together with its [EMB]s in one step of 5 or 65 positions, and the next
token follows the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch

from ...mulan.internvl_chat.chat_language_model import check_temperature
from .language_model import KVCache
from .special_tokens import EMBEDDINGS, PATCH, REGION
from .super_link import TABLE_OF
from .visionllm import Prompt, VisionLLM

CACHE_GROWTH = 256  # tokens that the KV cache takes before it is copied into a larger one

Sampler = Callable[[torch.Tensor], torch.Tensor]  # logits [B, vocab_size] -> token ids [B]


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """Return the most likely token ids [B] of logits [B, vocab_size]."""
    return logits.argmax(dim=-1)


def nucleus_sampler(temperature: float, top_p: float, seed: int) -> Sampler:
    """Return a sampler of the most likely tokens that together have the probability `top_p` (0 < top_p <= 1).

    The same seed gives the same text. Raises ValueError for a temperature or top_p that is no such number.
    """
    temperature = check_temperature(temperature)
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be a number above 0 and at most 1, not {top_p}")
    generator = torch.Generator().manual_seed(seed)

    def sample(logits):
        odds, token_ids = (logits.float().cpu() / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        odds = odds.masked_fill(odds.cumsum(dim=-1) - odds >= top_p, 0.0)
        return token_ids.gather(-1, torch.multinomial(odds, 1, generator=generator)).squeeze(-1).to(logits.device)

    return sample


@dataclass(frozen=True)
class ToolCall:
    """A generated tool token: its position among the answer's ids, and its decoder's queries, [count, C]."""

    tool: str
    position: int
    hidden_states: torch.Tensor


@dataclass
class GeneratedText:
    """What is generated so far: token ids without [EMB]s and without the end token."""

    token_ids: list[int] = field(default_factory=list)
    tools: list[ToolCall] = field(default_factory=list)
    finished: bool = False  # by the end token; else `max_tokens` stopped it


class Generation:
    """One answer per prompt. Each iteration generates a token of each, and gives the new ids (None: it is finished)."""

    def __init__(
        self,
        model: VisionLLM,
        prompts: Sequence[Prompt],
        id_of: Mapping[str, int],
        past: KVCache | None = None,
        *,
        end: int,
        max_tokens: int,
        sampler: Sampler = greedy,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        after_layer: Callable[[], None] = lambda: None,
        check: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits,
    ):
        """Run the prompts behind `past`.

        end: the id that ends an answer. max_tokens: per answer. device: see `VisionLLM.embed`. check: raises where it
        refuses the logits of a step.
        """
        self.answers = [GeneratedText() for _ in prompts]
        self._model, self._sampler, self._after_layer, self._check = model, sampler, after_layer, check
        self._end, self._max_tokens = end, max_tokens
        self._tool_of = {id_of[tool]: tool for tool in TABLE_OF if TABLE_OF[tool] in model.super_link.config.rows}
        self._never = [id_of[name] for name in EMBEDDINGS]  # they are put in, not sampled
        hidden_states, new_cache = model.prefill(
            prompts,
            id_of[PATCH],
            id_of[REGION],
            past,
            use_cache=True,
            dtype=dtype,
            device=device,
            after_layer=after_layer,
        )
        device, cache = hidden_states.device, cast(KVCache, new_cache)
        self._dtype = hidden_states.dtype
        lengths = torch.tensor([len(prompt.input_ids) for prompt in prompts], device=device)
        before = past.length if past else 0
        self._cache = cache.with_room(CACHE_GROWTH)
        self._valid = torch.arange(cache.length, device=device)[None] < (before + lengths)[:, None]
        self._next_position = before + lengths
        self._last = hidden_states[torch.arange(len(prompts), device=device), lengths - 1]

    def __iter__(self) -> Iterator[list[int | None]]:
        for left in reversed(range(self._max_tokens)):
            if all(answer.finished for answer in self.answers):
                return
            yield self._generate_one(last=not left)

    def run(self) -> list[GeneratedText]:
        """Generate to the end."""
        for _ in self:
            pass
        return self.answers

    def _generate_one(self, last: bool) -> list[int | None]:
        logits = self._check(self._model.language.logits(self._last))
        logits[:, self._never] = -torch.inf
        new: list[int | None] = []
        for answer, token_id in zip(self.answers, self._sampler(logits).tolist(), strict=True):
            answer.finished = answer.finished or token_id == self._end
            new.append(None if answer.finished else token_id)
        for answer, token_id in zip(self.answers, new, strict=True):
            if token_id is not None:
                answer.token_ids.append(token_id)
        # The last word's hidden states are of no use, a tool's are.
        fed = [token_id if token_id in self._tool_of or not last else None for token_id in new]
        if any(token_id is not None for token_id in fed):
            self._feed(fed)
        return new

    def _feed(self, token_ids: list[int | None]) -> None:
        """Run one step of the language model.

        Rows that have fewer positions than others are padded, and the padding is never looked at.
        """
        device, rows = self._last.device, []
        words = self._model.language.embed_tokens(
            torch.tensor([0 if token_id is None else token_id for token_id in token_ids], device=device)
        ).to(self._dtype)
        for word, token_id in zip(words, token_ids, strict=True):
            if token_id is None:
                rows.append(word[None][:0])
            elif token_id in self._tool_of:
                embeddings = self._model.super_link.embeddings(self._tool_of[token_id]).to(word)
                rows.append(torch.cat((word[None], embeddings)))
            else:
                rows.append(word[None])
        counts = torch.tensor([len(row) for row in rows], device=device)
        longest = int(counts.max())
        step = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        offsets = torch.arange(longest, device=device)
        self._valid = torch.cat((self._valid, offsets < counts[:, None]), dim=1)
        if self._cache.room < self._cache.length + longest:
            self._cache = self._cache.with_room(longest + CACHE_GROWTH)
        hidden_states, cache = self._model.language(
            step,
            self._cache,
            use_cache=True,
            mask=None if self._valid.all() else self._valid,
            positions=self._next_position[:, None] + offsets,
            after_layer=self._after_layer,
        )
        self._cache = cast(KVCache, cache)
        self._next_position = self._next_position + counts
        for index, (answer, token_id) in enumerate(zip(self.answers, token_ids, strict=True)):
            if token_id is None:
                continue
            if token_id in self._tool_of:
                queries = hidden_states[index, 1 : len(rows[index])]
                answer.tools.append(ToolCall(self._tool_of[token_id], len(answer.token_ids) - 1, queries))
            self._last[index] = hidden_states[index, len(rows[index]) - 1]
