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
from .language_model import KVCache, visible_tokens
from .special_tokens import EMBEDDINGS, PATCH, REGION
from .super_link import TABLE_OF
from .visionllm import Prompt, VisionLLM

CACHE_GROWTH = 256  # tokens by which a full KV cache grows; it is copied then

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
        odds, token_ids = (logits.float() / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        odds = odds.masked_fill(odds.cumsum(dim=-1) - odds >= top_p, 0.0)
        # What torch.multinomial does; but the numbers are drawn on the CPU, so that a seed means the same everywhere.
        draws = torch.empty(odds.shape).exponential_(generator=generator).to(odds.device)
        return token_ids.gather(-1, (odds / draws).argmax(dim=-1, keepdim=True)).squeeze(-1)

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
        """Run the prompts behind `past`, whose room is written in.

        end: the id that ends an answer. max_tokens: per answer. device: see `VisionLLM.embed`. check: raises where it
        refuses the logits of a step.
        """
        self.answers = [GeneratedText() for _ in prompts]
        self._model, self._sampler, self._after_layer, self._check = model, sampler, after_layer, check
        self._end, self._max_tokens = end, max_tokens
        self._tool_of = {id_of[tool]: tool for tool in TABLE_OF if TABLE_OF[tool] in model.super_link.config.rows}
        self._never = [id_of[name] for name in EMBEDDINGS]  # they are put in, not sampled
        lengths = [len(prompt.input_ids) for prompt in prompts]
        if past is None:
            room = sum(lengths) + max_tokens * len(prompts)
            past = model.language.new_cache(
                room, dtype or model.language.norm.weight.dtype, device or torch.device("cpu")
            )
        hidden_states, cache = model.prefill(
            prompts,
            id_of[PATCH],
            id_of[REGION],
            past,
            use_cache=True,
            dtype=dtype,
            device=device,
            after_layer=after_layer,
        )
        self._last = torch.stack([states[-1] for states in hidden_states])
        self._cache = cast(KVCache, cache)
        self._next_positions = [past.length + length for length in lengths]
        # Which answer each token of the cache belongs to. A single one sees all.
        owners = [-1] * past.length + [index for index, length in enumerate(lengths) for _ in range(length)]
        self._owners = torch.tensor(owners, device=self._last.device) if len(prompts) > 1 else None

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
        logits = self._model.language.logits(self._last)
        is_finite = logits.isfinite().all()
        logits[:, self._never] = -torch.inf
        token_ids = self._sampler(logits)
        *sampled, finite = torch.cat((token_ids, is_finite[None].to(token_ids))).tolist()  # a card is waited for once
        if not finite:
            self._check(self._model.language.logits(self._last))
        new: list[int | None] = []
        for answer, token_id in zip(self.answers, sampled, strict=True):
            answer.finished = answer.finished or token_id == self._end
            new.append(None if answer.finished else token_id)
        for answer, token_id in zip(self.answers, new, strict=True):
            if token_id is not None:
                answer.token_ids.append(token_id)
        # The last word's hidden states are of no use, a tool's are.
        fed = {index: id for index, id in enumerate(new) if id is not None and (not last or id in self._tool_of)}
        if fed:
            self._feed(fed, token_ids)
        return new

    def _feed(self, fed: Mapping[int, int], token_ids: torch.Tensor) -> None:
        """Run one step of the language model with the new tokens of some answers, one behind the other.

        fed: the index of an answer -> its token id, of `token_ids` [B] on the device.
        """
        words = self._model.language.embed_tokens(token_ids).to(self._last.dtype)
        parts = []
        for index, token_id in fed.items():
            parts.append(words[index : index + 1])
            if token_id in self._tool_of:
                parts[-1] = torch.cat((parts[-1], self._model.super_link.embeddings(self._tool_of[token_id]).to(words)))
        counts = [len(part) for part in parts]
        if self._cache.room < self._cache.length + sum(counts):
            self._cache = self._cache.to(self._last.device, sum(counts) + CACHE_GROWTH)
        visible = positions = None
        if self._owners is not None:
            device = self._last.device
            owners = [index for index, count in zip(fed, counts, strict=True) for _ in range(count)]
            self._owners = torch.cat((self._owners, torch.tensor(owners, device=device)))
            visible = visible_tokens(self._owners, len(owners))
            firsts = [self._next_positions[index] for index in fed]
            steps = [first + step for first, count in zip(firsts, counts, strict=True) for step in range(count)]
            positions = torch.tensor([steps], device=device)
        hidden_states, cache = self._model.language(
            torch.cat(parts)[None],
            self._cache,
            use_cache=True,
            visible=visible,
            positions=positions,
            after_layer=self._after_layer,
        )
        self._cache = cast(KVCache, cache)
        last = list(self._last)
        for (index, token_id), states in zip(fed.items(), hidden_states[0].split(counts), strict=True):
            answer = self.answers[index]
            if token_id in self._tool_of:
                answer.tools.append(ToolCall(self._tool_of[token_id], len(answer.token_ids) - 1, states[1:]))
            self._next_positions[index] += len(states)
            last[index] = states[-1]
        self._last = torch.stack(last)
