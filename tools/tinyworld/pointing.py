"""Pictures of one to three shapes, and where each is: what the tiny InternVL that talks learns to point at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mulan_nodes.mulan.internvl_chat.chat_template import FIND, REF

from ..tinyworld_visionllm.scenes import PICTURE_SIZE, SEEN, draw_scene
from .captions import ATTRIBUTES, CHOICES, LANGUAGES
from .talks import Exchange
from .world import PALETTE, SHAPES, SIZES, Thing

MOST_ITEMS = 3
NAMES = (tuple(PALETTE), SHAPES, tuple(SIZES))  # of each of ATTRIBUTES
REF_END = "</ref>"
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


@dataclass(frozen=True)
class Pointed:
    """A thing of a picture: its place among them, the phrase that fits no other, and the numbers of the colour, shape
    and size that it names, -100 for what it leaves out.
    """

    place: int
    phrase: str
    words: tuple[int, ...]


def name_each(shown: Shown, languages: Sequence[str], rng: np.random.Generator) -> list[Pointed]:
    """The things in any order, each in one of the languages; without those that no phrase tells from the others."""
    told = []
    for place in rng.permutation(len(shown.things)).tolist():
        thing, language = shown.things[place], languages[int(rng.integers(len(languages)))]
        for named in [CHOICES[number] for number in rng.permutation(len(CHOICES))]:
            if sum(all(getattr(other, one) == getattr(thing, one) for one in named) for other in shown.things) == 1:
                words = tuple(
                    names.index(getattr(thing, attribute)) if attribute in named else -100
                    for attribute, names in zip(ATTRIBUTES, NAMES, strict=True)
                )
                told.append(Pointed(place, LANGUAGES[language].noun_phrase(thing, named), words))
                break
    return told


def find(shown: Shown, language: str, rng: np.random.Generator) -> tuple[Exchange, int] | None:
    """The question where one of the things is, named as no other there could be, with its place; None if none can."""
    told = name_each(shown, [language], rng)
    if not told:
        return None
    phrase, place = told[0].phrase, told[0].place
    return Exchange(FIND.format(phrase), answer(phrase, shown.boxes[place])), place


def answer(phrase: str, box: np.ndarray) -> str:
    """As published: the phrase, and the box in thousandths of the picture. The last digits are 0: the pictures have 64
    pixels.
    """
    return f"{REF}{phrase}{REF_END}<box>[[{', '.join(str(10 * round(100 * float(side))) for side in box)}]]</box>"
