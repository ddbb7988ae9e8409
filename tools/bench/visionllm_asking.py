"""Questions about one picture: to decoders and in words, as the nodes ask them, and in words without a cache."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from mulan_nodes.visionllm_nodes.model import answers, perception, prompt_templates
from mulan_nodes.visionllm_nodes.model.prefill import (
    ImageView,
    cached_prefix,
    count_image_tokens,
    split_at_last_image,
    super_link_states,
    tokenize_prompt,
)
from mulan_nodes.visionllm_nodes.model.prompt_templates import Turn
from mulan_nodes.visionllm_nodes.model.special_tokens import PATCH, REGION
from mulan_nodes.visionllm_nodes.model.super_link import gather_queries
from mulan_nodes.visionllm_nodes.model.visionllm import Prompt
from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

from .worker import timed

Times = dict[str, float]  # cpu and wall, seconds

VIEWS = (1, 5)
PARTS = ("tower", "language", "grounding")
PHRASES = ("red circle", "blue square present in the image")
QUESTIONS = (
    "Where is the red circle in the image?",
    "Can you identify the blue square?",
    "What are the results for the user?",
    "Where can we locate the square and the circle?",
)
MAX_TOKENS = 24
NAIVE_LIMIT = 3  # each of these tokens costs as much as a first question


class Asking:
    """A published folder's model and two pictures of one shape, which the tower takes as one view and as five (four
    tiles and the whole).
    """

    def __init__(self, folder: Path):
        self.loaded = load_visionllm(folder, "cpu")
        scale = self.loaded.settings.tower / 336
        noise = np.random.default_rng(1)
        sizes = {1: (240, 320), 5: (480, 640)}
        self.pictures = {
            views: noise.integers(0, 256, (*(round(side * scale) for side in size), 3), dtype=np.uint8)
            for views, size in sizes.items()
        }

    @torch.no_grad()
    def question(self, views: int, phrase: str, *, fresh: bool, decode: bool) -> dict[str, Times]:
        """What to ask the grounding decoder with, and with `decode` its answer, a mask included: the whole, and the
        parts in it.

        `fresh`: with nothing remembered.
        """

        def work():
            if decode:
                perception.ground(self.loaded, self.pictures[views], phrase)
            else:
                super_link_states(
                    self.loaded, ImageView(self.loaded, self.pictures[views]), [prompt_templates.grounding(phrase)]
                )

        if fresh:
            self.loaded.prefix_cache.clear()
        with self._timing_parts() as parts:
            whole, _ = timed(work)
        return {"whole": whole, **parts}

    @contextmanager
    def _timing_parts(self) -> Iterator[dict[str, Times]]:
        times = {name: {"cpu": 0.0, "wall": 0.0} for name in PARTS}
        handles = []

        def watch(name):
            started = {}

            def enter(*_):
                started.update(cpu=time.process_time(), wall=time.perf_counter())

            def leave(*_):
                times[name]["cpu"] += time.process_time() - started["cpu"]
                times[name]["wall"] += time.perf_counter() - started["wall"]

            module = getattr(self.loaded.model, name)
            handles.extend((module.register_forward_pre_hook(enter), module.register_forward_hook(leave)))

        for name in PARTS:
            watch(name)
        try:
            yield times
        finally:
            for handle in handles:
                handle.remove()

    def tokens(self, views: int, phrase: str) -> dict[str, int]:
        """Of the prompt up to the picture's last, and of the question behind it."""
        begin, rest = split_at_last_image(self.loaded, self._prompt(views, prompt_templates.grounding(phrase)))
        return {"begin": len(begin), "question": len(rest)}

    @torch.no_grad()
    def error(self, views: int, phrase: str) -> float:
        """What the decoder is asked with, behind the cache and in one pass over the whole prompt: how they differ,
        relative to the largest value.
        """
        turn = prompt_templates.grounding(phrase)
        (behind,) = super_link_states(self.loaded, ImageView(self.loaded, self.pictures[views]), [turn])
        ids = self._prompt(views, turn)
        prompt = self._whole(views, ids)
        states, _ = self.loaded.model.prefill([prompt], self.loaded.token_ids[PATCH], self.loaded.token_ids[REGION])
        whole = gather_queries(states[0], prompt.links)
        return float((behind - whole).abs().max() / whole.abs().max())

    # --- in words ---

    def answer(self, questions: Sequence[str], max_tokens: int = MAX_TOKENS) -> tuple[Times, list[str]]:
        """Answers side by side, of exactly `max_tokens` tokens each, to the image of one view, which is cached."""
        turns = [prompt_templates.chat(question) for question in questions]
        times, replies = timed(
            lambda: answers.answer(self.loaded, [self.pictures[1]], turns, max_tokens=max_tokens, sampler=self._word)
        )
        return times, [reply.text for reply in replies]

    @torch.no_grad()
    def answer_without_cache(self, question: str, max_tokens: int = NAIVE_LIMIT) -> tuple[Times, str]:
        """The loop that passes over the whole prompt for every token. It too sees the picture once, and makes logits of
        the last place only.
        """
        (turn,) = prompt_templates.chat(question)
        prompt = self._prompt(1, turn)
        ids = list(prompt)

        def work():
            for _ in range(max_tokens):
                (states,), _ = self.loaded.model.prefill(
                    [self._whole(1, ids)], self.loaded.token_ids[PATCH], self.loaded.token_ids[REGION]
                )
                ids.append(int(self._word(self.loaded.model.language.logits(states[-1:]))))

        times, _ = timed(work)
        return times, self.loaded.tokenizer.decode(ids[len(prompt) :], special=True).strip()

    def _word(self, logits: torch.Tensor) -> torch.Tensor:
        """The likeliest of the tokenizer's own pieces: random weights would end the answer at any time, or write what
        has no text.
        """
        first = 1 + max(self.loaded.tokenizer.bos, self.loaded.tokenizer.eos, self.loaded.tokenizer.unk)
        return logits[:, first : self.loaded.tokenizer.base_size].argmax(dim=-1) + first

    def _prompt(self, views: int, turn: Turn) -> list[int]:
        return tokenize_prompt(
            self.loaded, [turn], [count_image_tokens(self.loaded, ImageView(self.loaded, self.pictures[views]))]
        )

    def _whole(self, views: int, ids: Sequence[int]) -> Prompt:
        """The whole prompt for one pass."""
        begin, _ = split_at_last_image(self.loaded, ids)
        seen = cached_prefix(self.loaded, ImageView(self.loaded, self.pictures[views]), begin, lambda: None).features
        return Prompt(list(ids), [seen.tokens], None, self.loaded.model.super_link.links(ids, self.loaded.token_ids))
