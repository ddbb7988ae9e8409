"""Pictures of one to three shapes, and where each is: what the tiny InternVL that talks learns to point at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mulan_nodes.mulan.internvl_chat.chat_template import FIND, REF

from ..tinyworld_visionllm.scenes import PICTURE_SIZE, SEEN, draw_scene
from .captions import CHOICES, LANGUAGES
from .talks import QUESTIONS, Exchange
from .world import Thing

MOST_ITEMS = 3
SHRUNK = 2  # the scenes are twice as large as the tower's pictures


@dataclass(frozen=True)
class Shown:
    """A picture uint8 [64, 64, 3], the things in it, and their boxes [N, 4], x0, y0, x1, y1 in 0..1."""

    picture: np.ndarray
    things: tuple[Thing, ...]
    boxes: np.ndarray


def show(rng: np.random.Generator, things: tuple[Thing, ...] = SEEN) -> Shown:
    """A new picture."""
    scene = draw_scene(rng, things, 1, MOST_ITEMS)
    side = PICTURE_SIZE // SHRUNK
    small = scene.picture.reshape(side, SHRUNK, side, SHRUNK, 3).mean((1, 3)).round().astype(np.uint8)
    boxes = np.stack([item.box for item in scene.items]) / PICTURE_SIZE
    return Shown(small, tuple(item.thing for item in scene.items), boxes.clip(0, 1))


def find(shown: Shown, language: str, rng: np.random.Generator) -> tuple[Exchange, int] | None:
    """The question where one of the things is, named as no other there could be, with its place; None if none can."""
    for place in rng.permutation(len(shown.things)).tolist():
        thing = shown.things[place]
        for named in [CHOICES[number] for number in rng.permutation(len(CHOICES))]:
            if sum(all(getattr(other, one) == getattr(thing, one) for one in named) for other in shown.things) == 1:
                phrase = LANGUAGES[language].noun_phrase(thing, named)
                return Exchange(FIND.format(phrase), answer(phrase, shown.boxes[place])), place
    return None


def answer(phrase: str, box: np.ndarray) -> str:
    """As published: the phrase, and the box in thousandths of the picture."""
    return f"{REF}{phrase}</ref><box>[[{', '.join(str(round(1000 * float(side))) for side in box)}]]</box>"


def draw_find(shown: Shown, rng: np.random.Generator) -> Exchange | None:
    """A question about a picture in one of the twelve languages."""
    found = find(shown, list(QUESTIONS)[int(rng.integers(len(QUESTIONS)))], rng)
    return found[0] if found else None
