"""Puts a picture and a question before the language model: one pass over the picture, kept; one pass over the words of each question."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import comfy.model_management
import comfy.utils
import torch

from ...mulan.images.tiling import Picture, as_pixels
from .image_inputs import tower_pictures
from .language_model import check_interrupt
from .prefix_cache import Remembered, content_key
from .prompt_templates import Turn
from .special_tokens import PATCH, REGION
from .super_link import read
from .visionllm import Prompt
from .visionllm_loader import LoadedVisionLLM

BYTES_PER_CANVAS_PIXEL = 1024  # of a decoder with its backbone: at 800 x 1333 it takes about a gigabyte

_SHARE: ContextVar[tuple[int, int]] = ContextVar(
    "share", default=(0, 1)
)  # which part of the work is shown progress of, and of how many


class View:
    """A picture before the model: `pixels` uint8 [H, W, 3], and its views as the tower takes them."""

    def __init__(self, loaded: LoadedVisionLLM, picture: Picture):
        self.pixels = as_pixels(picture)
        self.size = self.pixels.shape[:2]
        self.views = tower_pictures(self.pixels, loaded.settings)

    @property
    def key(self) -> str:
        return content_key(self.pixels)


def prepare(loaded: LoadedVisionLLM, views: Sequence[View], words: int, canvas: int = 0) -> None:
    """Has the host load the weights with room for a pass over the views' tokens and `words` more, and for decoding a canvas of so many pixels."""
    config = loaded.file.parts["language"].config
    tokens = words + sum(tokens_of(loaded, view) for view in views)
    activations = tokens * (8 * config.width + 3 * config.feed_forward) + tokens * tokens
    cache = 2 * tokens * config.layers * config.width * config.key_value_heads // config.heads
    loaded.ready(loaded.dtype.itemsize * (activations + cache) + BYTES_PER_CANVAS_PIXEL * canvas)


def tokens_of(loaded: LoadedVisionLLM, view: View) -> int:
    """How many tokens of the language model a view takes."""
    tower = loaded.file.parts["tower"].config.patches
    return len(view.views) * (tower // 4 if loaded.model.shuffles else tower)


def prompt_of(loaded: LoadedVisionLLM, turns: Sequence[Turn], counts: Sequence[int]) -> list[int]:
    """The ids of a conversation whose n-th picture takes counts[n] tokens."""
    return loaded.tokenizer.encode(loaded.format.prompt(turns), *counts)


def remember(loaded: LoadedVisionLLM, view: View, begin: Sequence[int], after_layer: Callable[[], None]) -> Remembered:
    """The picture as seen and the cache of `begin`, the ids up to its last token; from memory where it was asked about before."""
    key = view.key, tuple(begin)
    known = loaded.memory.get(key)
    if known is None:
        seen = loaded.model.look(view.views.to(loaded.device, loaded.dtype))
        _, cache = loaded.model.read(
            [Prompt(begin, [seen.tokens])],
            loaded.ids[PATCH],
            loaded.ids[REGION],
            keep=True,
            device=loaded.device,
            after_layer=after_layer,
        )
        known = Remembered(seen, cache)
        loaded.memory.put(key, known.to(_keep()))
    return known.to(loaded.device)


def split(loaded: LoadedVisionLLM, ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """The ids up to the last token of the last picture, and those behind it; without a picture all are behind."""
    patch = loaded.ids[PATCH]
    cut = len(ids) - list(ids)[::-1].index(patch) if patch in ids else 0
    return list(ids[:cut]), list(ids[cut:])


def ask(
    loaded: LoadedVisionLLM, view: View, turns: Sequence[Turn], regions: torch.Tensor | None = None, canvas: int = 0
) -> list[torch.Tensor]:
    """Questions that hold their answers, about one picture -> per question what the decoders are asked with: [links, count, width].

    `regions` bool [R, S, S] at the tower's size, for one question with R regions; `canvas`: pixels that a decoder will work on.
    """
    prompts = [prompt_of(loaded, [turn], [tokens_of(loaded, view)]) for turn in turns]
    begin, _ = split(loaded, prompts[0])
    rests = [ids[len(begin) :] for ids in prompts]
    prepare(loaded, [view], sum(map(len, rests)), canvas)
    after_layer = progress(loaded, 2)
    seen = remember(loaded, view, begin, after_layer)
    marks = None
    if regions is not None:
        marks = loaded.model.look_at_regions(
            view.views[-1].to(loaded.device, loaded.dtype), seen.seen, regions.to(loaded.device)
        )
    links = [loaded.model.super_link.links(ids, loaded.ids) for ids in rests]
    # Nothing behind the last [EMB] reaches a decoder.
    questions = [Prompt(ids[: of[-1].start + of[-1].count], (), marks, of) for ids, of in zip(rests, links)]
    states, _ = loaded.model.read(
        questions,
        loaded.ids[PATCH],
        loaded.ids[REGION],
        seen.cache,
        dtype=loaded.dtype,
        device=loaded.device,
        after_layer=after_layer,
    )
    return [read(rows, of) for rows, of in zip(states, links)]


def progress(loaded: LoadedVisionLLM, passes: int) -> Callable[[], None]:
    """What to call behind each layer: it shows progress over so many passes of the language model, and stops where the user has pressed stop."""
    advance = progress_bar(passes * loaded.file.parts["language"].config.layers)

    def after_layer():
        check_interrupt()
        advance()

    return after_layer


@contextmanager
def share_of_progress(part: int, parts: int) -> Iterator[None]:
    """Within it, what one question shows as its progress is that of the `part`-th (from 0) of so many like it."""
    token = _SHARE.set((part, parts))
    try:
        yield
    finally:
        _SHARE.reset(token)


def progress_bar(steps: int) -> Callable[[], None]:
    """What to call behind each step."""
    part, parts = _SHARE.get()
    bar = comfy.utils.ProgressBar(parts * steps)
    done = 0

    def advance():
        nonlocal done
        done = min(done + 1, steps)
        bar.update_absolute(part * steps + done)

    return advance


def _keep() -> torch.device:
    return comfy.model_management.intermediate_device()
