"""Questions that the language model answers in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import comfy.model_management
import torch

from ...mulan.boundary.growing_text import GrowingText
from .decoding import require_part
from .generation import GeneratedText, Generation, Sampler, ToolCall, greedy
from .image_inputs import ImageLike
from .prefill import (
    ImageView,
    cached_prefix,
    count_image_tokens,
    layer_progress,
    load_weights,
    read_images,
    split_at_last_image,
    step_progress,
    tokenize_prompt,
)
from .prompt_templates import Turn
from .visionllm import Prompt
from .visionllm_loader import LoadedVisionLLM

MAX_TOKENS = 256


@dataclass(frozen=True)
class Reply:
    """The answer to one question.

    text: with tool tokens spelled out. plain_text: without them. finished: False where `max_tokens` stopped it.
    lead_texts: per tool the text before it, from the previous one on, tokens such as `<det>` spelled out.
    """

    text: str
    plain_text: str
    finished: bool
    tools: tuple[ToolCall, ...]
    lead_texts: tuple[str, ...]


class Conversation:
    """Questions about one or several images, answered side by side.

    Each iteration generates a token of each answer.
    """

    def __init__(
        self,
        loaded: LoadedVisionLLM,
        images: Sequence[ImageLike],
        questions: Sequence[Sequence[Turn]],
        *,
        region_masks: torch.Tensor | None = None,
        max_tokens: int = MAX_TOKENS,
        sampler: Sampler = greedy,
    ):
        """Run the prompts of all questions.

        questions: per question its turns, the last without an answer; all are about the same images, whose `<image>`s
        they hold. region_masks: bool [R, S, S] at the tower's size, the regions of the last image that a single
        question names. max_tokens: per answer. Raises ValueError where the images or regions are not those that a
        question has positions for.
        """
        if region_masks is not None:
            require_part(loaded, "region_encoder")
            if len(questions) > 1:
                raise ValueError("ask one question at a time about regions")
        self._loaded = loaded
        views = [ImageView(loaded, image) for image in images]
        counts = [count_image_tokens(loaded, view) for view in views]
        prompts = [tokenize_prompt(loaded, turns, counts) for turns in questions]
        prefix_ids, _ = split_at_last_image(loaded, prompts[0])
        if any(input_ids[: len(prefix_ids)] != prefix_ids for input_ids in prompts):
            raise ValueError("questions asked side by side must agree up to the end of the last image")
        rests = [input_ids[len(prefix_ids) :] for input_ids in prompts]
        room = sum(map(len, rests)) + max_tokens * len(rests)
        load_weights(loaded, views, room)
        after_layer = layer_progress(loaded, 2)
        past, last_features = None, None
        if len(views) == 1:
            prefix = cached_prefix(loaded, views[0], prefix_ids, after_layer, room)
            past, last_features = prefix.cache, prefix.features
        elif views:  # several images have words between them: they are read together, and not kept
            (*_, last_features), past = read_images(loaded, views, prefix_ids, after_layer, room)
        region_embeddings = None
        if region_masks is not None:
            if last_features is None:
                raise ValueError("regions need an image")
            region_embeddings = loaded.model.encode_regions(
                views[-1].views[-1].to(loaded.device, loaded.dtype), last_features, region_masks.to(loaded.device)
            )
        asked = [
            Prompt(input_ids, (), region_embeddings, loaded.model.super_link.links(input_ids, loaded.token_ids))
            for input_ids in rests
        ]
        self._max_tokens = max_tokens
        self._texts = [GrowingText(partial(loaded.tokenizer.decode, special=True)) for _ in asked]
        self._generation = Generation(
            loaded.model,
            asked,
            loaded.token_ids,
            past,
            end=_end(loaded),
            max_tokens=max_tokens,
            sampler=sampler,
            dtype=loaded.dtype,
            device=loaded.device,
            after_layer=comfy.model_management.throw_exception_if_processing_interrupted,
            check=partial(loaded.check_finite, what="logits"),
        )

    def __iter__(self) -> Iterator[None]:
        advance = step_progress(self._max_tokens)
        for _ in self._generation:
            advance()
            yield

    @property
    def texts(self) -> list[str]:
        """The texts so far, with tool tokens spelled out."""
        answers = self._generation.answers
        return [text(answer.token_ids).strip() for text, answer in zip(self._texts, answers, strict=True)]

    @property
    def replies(self) -> list[Reply]:
        """The answers as far as they are generated."""
        return [self._reply(answer) for answer in self._generation.answers]

    def _reply(self, answer: GeneratedText) -> Reply:
        decode = self._loaded.tokenizer.decode
        positions = [tool.position for tool in answer.tools]
        starts = [0, *(position + 1 for position in positions)]
        lead_texts = [
            decode(answer.token_ids[start:end], special=True).strip()
            for start, end in zip(starts, positions, strict=False)  # the text behind the last tool leads to none
        ]
        return Reply(
            decode(answer.token_ids, special=True).strip(),
            decode(answer.token_ids).strip(),
            answer.finished,
            tuple(answer.tools),
            tuple(lead_texts),
        )


@torch.no_grad()
def answer(
    loaded: LoadedVisionLLM,
    images: Sequence[ImageLike],
    questions: Sequence[Sequence[Turn]],
    *,
    region_masks: torch.Tensor | None = None,
    max_tokens: int = MAX_TOKENS,
    sampler: Sampler = greedy,
    on_text: Callable[[list[str]], None] | None = None,
) -> list[Reply]:
    """Generate the answers to the end. `on_text` gets the texts so far after every token. See `Conversation`."""
    conversation = Conversation(
        loaded, images, questions, region_masks=region_masks, max_tokens=max_tokens, sampler=sampler
    )
    for _ in conversation:
        if on_text is not None:
            on_text(conversation.texts)
    return conversation.replies


def _end(loaded: LoadedVisionLLM) -> int:
    """Return the id that ends an answer."""
    return loaded.token_ids.get(loaded.template.assistant_end, loaded.tokenizer.eos)
