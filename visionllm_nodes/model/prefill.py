"""Prefill: one pass over an image, whose KV cache is kept, and one pass over the words of each question behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

import comfy.model_management
import comfy.utils
import torch

from ...mulan.boundary.limits import MAX_CONTEXT_TOKENS, MAX_QUESTION_TOKENS, PREFILL_TOKENS
from ...mulan.boundary.texts import whole_characters
from ...mulan.images.tiling import ImageLike, to_pixels
from .image_inputs import tower_images
from .language_model import KVCache, check_interrupt
from .prefix_cache import CachedPrefix, content_key
from .prompt_templates import Turn
from .special_tokens import PATCH, REGION
from .super_link import gather_queries
from .visionllm import Prompt, VisionFeatures
from .visionllm_loader import LoadedVisionLLM

MAX_QUESTION_LENGTH = 16 * MAX_QUESTION_TOKENS  # characters; the longest tokens have sixteen

# Which part of the work progress is shown of (from 0), and of how many.
_SHARE: ContextVar[tuple[int, int]] = ContextVar("share", default=(0, 1))


class ImageView:
    """An image as the model takes it: `pixels` uint8 [H, W, 3], `views` [N, 3, S, S] for the vision tower."""

    def __init__(self, loaded: LoadedVisionLLM, image: ImageLike):
        self.pixels = to_pixels(image)
        self.size: tuple[int, int] = self.pixels.shape[0], self.pixels.shape[1]
        self.views = tower_images(self.pixels, loaded.settings)

    @property
    def key(self) -> str:
        return content_key(self.pixels)


def load_weights(loaded: LoadedVisionLLM, views: Sequence[ImageView], tokens: int, decoder: int = 0) -> None:
    """Have ComfyUI load the weights, with room for a pass over the views and `tokens` more, and for a decoder after it.

    decoder: the bytes that it takes, `Canvas.memory`.
    """
    config = loaded.file.parts["language"].config
    tokens += sum(count_image_tokens(loaded, view) for view in views)
    at_once = min(tokens, PREFILL_TOKENS)
    activations = at_once * (8 * config.hidden_size + 3 * config.intermediate_size) + 2 * tokens * config.hidden_size
    mask = at_once * tokens if tokens > PREFILL_TOKENS else 0
    key_value_size = config.hidden_size * config.num_key_value_heads // config.num_attention_heads
    cache = 2 * tokens * config.num_hidden_layers * key_value_size
    reading = loaded.dtype.itemsize * (activations + mask + cache)
    loaded.load(max(reading, decoder))


def count_image_tokens(loaded: LoadedVisionLLM, view: ImageView) -> int:
    """Return how many tokens of the language model an image takes."""
    patches = loaded.file.parts["tower"].config.num_patches
    return len(view.views) * (patches // 4 if loaded.model.uses_pixel_shuffle else patches)


def tokenize_prompt(loaded: LoadedVisionLLM, turns: Sequence[Turn], counts: Sequence[int]) -> list[int]:
    """Return the input ids of a conversation whose n-th image takes counts[n] tokens.

    Halves of characters become U+FFFD. Raises ValueError for more tokens than are read.
    """
    text, _ = whole_characters(loaded.template.prompt(turns))
    if len(text) > MAX_QUESTION_LENGTH:
        raise ValueError(
            f"the question is {len(text)} characters long, and at most {MAX_QUESTION_LENGTH} are read. Shorten it"
        )
    if sum(counts) > MAX_CONTEXT_TOKENS:
        raise ValueError(
            f"{len(counts)} images take {sum(counts)} tokens, and at most {MAX_CONTEXT_TOKENS} are read together. "
            "Ask about fewer images"
        )
    input_ids = loaded.tokenizer.encode(text, *counts)
    words = len(input_ids) - sum(counts)
    if words > MAX_QUESTION_TOKENS or len(input_ids) > MAX_CONTEXT_TOKENS:
        raise ValueError(
            f"the question takes {words} tokens{f' beside {sum(counts)} of images' if counts else ''}, and at most "
            f"{MAX_QUESTION_TOKENS} are read. Shorten it"
        )
    return input_ids


def cached_prefix(
    loaded: LoadedVisionLLM, view: ImageView, prefix_ids: Sequence[int], after_layer: Callable[[], None], room: int = 0
) -> CachedPrefix:
    """Return the image's features and the KV cache of `prefix_ids`, the input ids up to the image's last token.

    They are computed once per image and prefix, as long as the cache keeps them. room: so many tokens more are written
    into the cache, behind what is kept.
    """
    key = view.key, tuple(prefix_ids)
    prefix = loaded.prefix_cache.get(key)
    if prefix is not None:
        return prefix.to(loaded.device, room)
    (features,), cache = read_images(loaded, [view], prefix_ids, after_layer, room)
    prefix = CachedPrefix(features, cache)
    loaded.prefix_cache.put(key, prefix.to(comfy.model_management.intermediate_device()))
    return prefix


def read_images(
    loaded: LoadedVisionLLM,
    views: Sequence[ImageView],
    prefix_ids: Sequence[int],
    after_layer: Callable[[], None],
    room: int,
) -> tuple[list[VisionFeatures], KVCache]:
    """Return the features of images and the KV cache of `prefix_ids`, which hold them, with room for so many tokens
    more.
    """
    features = [loaded.model.encode_images(view.views.to(loaded.device, loaded.dtype)) for view in views]
    _, cache = loaded.model.prefill(
        [Prompt(prefix_ids, [of_image.tokens for of_image in features])],
        loaded.token_ids[PATCH],
        loaded.token_ids[REGION],
        loaded.model.language.new_cache(len(prefix_ids) + room, loaded.dtype, loaded.device),
        use_cache=True,
        device=loaded.device,
        after_layer=after_layer,
    )
    return features, cast(KVCache, cache)


def split_at_last_image(loaded: LoadedVisionLLM, input_ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the input ids up to the last token of the last image, and those behind it.

    Without an image all are behind.
    """
    patch = loaded.token_ids[PATCH]
    cut = len(input_ids) - list(input_ids)[::-1].index(patch) if patch in input_ids else 0
    return list(input_ids[:cut]), list(input_ids[cut:])


def super_link_states(
    loaded: LoadedVisionLLM,
    view: ImageView,
    turns: Sequence[Turn],
    region_masks: torch.Tensor | None = None,
    decoder: int = 0,
) -> list[torch.Tensor]:
    """Run questions that hold their answers, about one image -> per question the decoder's queries, [links, count, C].

    region_masks: bool [R, S, S] at the tower's size, for one question with R regions. decoder: bytes that
    it will take, `Canvas.memory`.
    """
    prompts = [tokenize_prompt(loaded, [turn], [count_image_tokens(loaded, view)]) for turn in turns]
    prefix_ids, _ = split_at_last_image(loaded, prompts[0])
    rests = [input_ids[len(prefix_ids) :] for input_ids in prompts]
    load_weights(loaded, [view], sum(map(len, rests)), decoder)
    after_layer = layer_progress(loaded, 2)
    prefix = cached_prefix(loaded, view, prefix_ids, after_layer)
    region_embeddings = None
    if region_masks is not None:
        region_embeddings = loaded.model.encode_regions(
            view.views[-1].to(loaded.device, loaded.dtype), prefix.features, region_masks.to(loaded.device)
        )
    links = [loaded.model.super_link.links(input_ids, loaded.token_ids) for input_ids in rests]
    # Nothing behind the last [EMB] reaches a decoder.
    questions = [
        Prompt(input_ids[: prompt_links[-1].start + prompt_links[-1].count], (), region_embeddings, prompt_links)
        for input_ids, prompt_links in zip(rests, links, strict=True)
    ]
    hidden_states, _ = loaded.model.prefill(
        questions,
        loaded.token_ids[PATCH],
        loaded.token_ids[REGION],
        prefix.cache,
        dtype=loaded.dtype,
        device=loaded.device,
        after_layer=after_layer,
    )
    return [
        loaded.check_finite(gather_queries(states, prompt_links), "hidden states")
        for states, prompt_links in zip(hidden_states, links, strict=True)
    ]


def layer_progress(loaded: LoadedVisionLLM, passes: int) -> Callable[[], None]:
    """Return an `after_layer` that shows progress over so many passes, and stops where the user has pressed stop."""
    advance = step_progress(passes * loaded.file.parts["language"].config.num_hidden_layers)

    def after_layer():
        check_interrupt()
        advance()

    return after_layer


@contextmanager
def progress_share(part: int, parts: int) -> Iterator[None]:
    """Count the progress shown within as that of the `part`-th (from 0) of so many equal parts; they may be nested."""
    outer_part, outer_parts = _SHARE.get()
    token = _SHARE.set((outer_part * parts + part, outer_parts * parts))
    try:
        yield
    finally:
        _SHARE.reset(token)


def step_progress(steps: int) -> Callable[[], None]:
    """Return a function to call behind each of so many steps; it advances ComfyUI's progress bar."""
    part, parts = _SHARE.get()
    bar = comfy.utils.ProgressBar(parts * steps)
    done = 0

    def advance():
        nonlocal done
        done = min(done + 1, steps)
        bar.update_absolute(part * steps + done)

    return advance
