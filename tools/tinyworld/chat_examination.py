"""What the tiny InternVL that talks answers about pictures it has never seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import comfy.sd
import numpy as np
import torch

from mulan_nodes.visionllm_nodes.detections.model_answers import read_answer

from ..tinyworld_visionllm.evaluation import FOUND, overlaps
from . import pointing, world
from .talks import KINDS, Exchange, ask, ask_of_two

SEED = 78  # not training's
GOAL = 0.9
FOLLOWING, OF_TWO = "following a question", "of two pictures"
ASKED = (*KINDS, FOLLOWING, OF_TWO)
LONGEST = 48  # tokens of an answer


def examine(
    clip: comfy.sd.CLIP,
    languages: Sequence[str],
    things: Sequence[world.Thing],
    count: int,
    asked: Sequence[str] = ASKED,
    on_language: Callable[[str], None] = lambda language: None,
) -> dict[str, dict[str, float]]:
    """Language -> kind of question -> the share of `count` answers that are right to the letter, about new drawings of
    the things.
    """
    found = {}
    for language in languages:
        rng = np.random.default_rng(SEED)
        found[language] = {
            kind: float(np.mean([_is_right(clip, kind, language, things, rng) for _ in range(count)])) for kind in asked
        }
        on_language(language)
    return found


def examine_pointing(
    clip: comfy.sd.CLIP, language: str, count: int, things: tuple[world.Thing, ...]
) -> list[tuple[int, bool]]:
    """Ask for `count` things in new images with the published prompt -> for each how many the image shows, and whether
    it is found: one box, with an IoU of at least 0.5.
    """
    rng, found = np.random.default_rng(SEED), []
    while len(found) < count:
        shown = pointing.show(rng, things)
        if asked := pointing.find(shown, language, rng):
            exchange, place = asked
            told = reply(clip, exchange.question, [torch.from_numpy(shown.picture).float() / 255])
            boxes = [one.numbers for one in read_answer(told).places if len(one.numbers) == 4]
            right = len(boxes) == 1 and overlaps(np.array(boxes) / 1000, shown.boxes[[place]]).item() >= FOUND
            found.append((len(shown.things), right))
    return found


def _is_right(
    clip: comfy.sd.CLIP, kind: str, language: str, things: Sequence[world.Thing], rng: np.random.Generator
) -> bool:
    thing, other = (things[index] for index in rng.integers(len(things), size=2))
    drawn = [thing]
    history: list[Exchange] = []
    if kind == OF_TWO:
        number = int(rng.integers(2))
        drawn.insert(1 - number, other)
        exchange = ask_of_two(drawn, number, language)
    elif kind == FOLLOWING:
        first, then = rng.permutation(KINDS[1:-1])[:2].tolist()
        history = [ask(thing, first, language, rng, things)]
        exchange = ask(thing, then, language, rng, things, follows=True)
    else:
        exchange = ask(thing, kind, language, rng, things)
    pictures = [torch.from_numpy(world.draw(each, rng)).float() / 255 for each in drawn]
    return (
        reply(clip, exchange.question, pictures, [(said.question, said.answer) for said in history]) == exchange.answer
    )


def reply(
    clip: comfy.sd.CLIP, question: str, pictures: Sequence[torch.Tensor] = (), history: Sequence[tuple[str, str]] = ()
) -> str:
    """The most likely answer. Pictures [H, W, 3] float, 0 to 1."""
    tokens = clip.tokenize(question, images=pictures, history=history)
    return clip.decode(clip.generate(tokens, do_sample=False, max_length=LONGEST))
