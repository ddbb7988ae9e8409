"""Questions that the language model answers in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import comfy.model_management
import torch

from .generation import Answer, Choose, ToolCall, Writing, greedy
from .image_inputs import Picture
from .prefill import View, prepare, progress, progress_bar, prompt_of, remember, split, tokens_of
from .prompt_templates import Turn
from .special_tokens import PATCH, REGION
from .visionllm import Prompt
from .visionllm_loader import LoadedVisionLLM

LIMIT = 256


@dataclass(frozen=True)
class Reply:
    """What was written to one question: `text` with its tool tokens spelled out, `spoken` without; `finished` is False where the limit cut it.

    `leads`: of each tool the text before it, from the previous one on, tokens such as `<det>` spelled out.
    """

    text: str
    spoken: str
    finished: bool
    tools: tuple[ToolCall, ...]
    leads: tuple[str, ...]


class Conversation:
    """Questions about one or several pictures, answered side by side. Iterating writes a token of each answer and gives the texts so far."""

    def __init__(
        self,
        loaded: LoadedVisionLLM,
        pictures: Sequence[Picture],
        questions: Sequence[Sequence[Turn]],
        *,
        marks: torch.Tensor | None = None,
        limit: int = LIMIT,
        choose: Choose = greedy,
    ):
        """`questions`: per question its turns, the last without an answer; all are about the same pictures, whose `<image>`s they hold.

        `marks` bool [R, S, S] at the tower's size: the regions of the last picture that a single question names. `limit`: tokens per answer.
        Raises ValueError where the pictures or regions are not those that a question has places for.
        """
        if marks is not None and len(questions) > 1:
            raise ValueError("regions can be asked about with one question at a time")
        self._loaded = loaded
        views = [View(loaded, picture) for picture in pictures]
        counts = [tokens_of(loaded, view) for view in views]
        prompts = [prompt_of(loaded, turns, counts) for turns in questions]
        begin, _ = split(loaded, prompts[0])
        if any(ids[: len(begin)] != begin for ids in prompts):
            raise ValueError("questions asked side by side must agree up to the end of the last picture")
        rests = [ids[len(begin) :] for ids in prompts]
        prepare(loaded, views, sum(map(len, rests)) + limit * len(rests))
        after_layer = progress(loaded, 2)
        past, embedded = None, None
        if len(views) == 1:
            seen = remember(loaded, views[0], begin, after_layer)
            past, of_last = seen.cache, seen.seen
        elif views:  # several pictures have words between them: they are read together, and not kept
            looks = [loaded.model.look(view.views.to(loaded.device, loaded.dtype)) for view in views]
            _, past = loaded.model.read(
                [Prompt(begin, [look.tokens for look in looks])],
                loaded.ids[PATCH],
                loaded.ids[REGION],
                keep=True,
                device=loaded.device,
                after_layer=after_layer,
            )
            of_last = looks[-1]
        if marks is not None:
            embedded = loaded.model.look_at_regions(
                views[-1].views[-1].to(loaded.device, loaded.dtype), of_last, marks.to(loaded.device)
            )
        asked = [Prompt(ids, (), embedded, loaded.model.super_link.links(ids, loaded.ids)) for ids in rests]
        self._limit = limit
        self._writing = Writing(
            loaded.model,
            asked,
            loaded.ids,
            past,
            end=_end(loaded),
            limit=limit,
            choose=choose,
            dtype=loaded.dtype,
            device=loaded.device,
            after_layer=comfy.model_management.throw_exception_if_processing_interrupted,
        )

    def __iter__(self) -> Iterator[list[str]]:
        advance = progress_bar(self._limit)
        for _ in self._writing:
            advance()
            yield [reply.text for reply in self.replies]

    @property
    def replies(self) -> list[Reply]:
        """The answers as far as they are written."""
        return [self._reply(answer) for answer in self._writing.answers]

    def _reply(self, answer: Answer) -> Reply:
        decode = self._loaded.tokenizer.decode
        places = [tool.before for tool in answer.tools]
        leads = [
            decode(answer.ids[begin:end], special=True).strip()
            for begin, end in zip([0, *(place + 1 for place in places)], places)
        ]
        return Reply(
            decode(answer.ids, special=True).strip(),
            decode(answer.ids).strip(),
            answer.finished,
            tuple(answer.tools),
            tuple(leads),
        )


@torch.no_grad()
def answer(
    loaded: LoadedVisionLLM,
    pictures: Sequence[Picture],
    questions: Sequence[Sequence[Turn]],
    *,
    marks: torch.Tensor | None = None,
    limit: int = LIMIT,
    choose: Choose = greedy,
    on_text: Callable[[list[str]], None] | None = None,
) -> list[Reply]:
    """Writes the answers to the end; `on_text` gets the texts so far after every token. See `Conversation`."""
    talk = Conversation(loaded, pictures, questions, marks=marks, limit=limit, choose=choose)
    for texts in talk:
        if on_text is not None:
            on_text(texts)
    return talk.replies


def _end(loaded: LoadedVisionLLM) -> int:
    """The id that ends an answer."""
    ending = loaded.format.gpt_end
    return loaded.ids.get(ending, loaded.tokenizer.eos)
