"""What an InternVL makes of the tiny world: pictures it has never seen are classified by words of each language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mulan_nodes.mulan.internvl.internvl_model import LoadedInternVL
from mulan_nodes.mulan.internvl.zeroshot import BUILT_IN, NO_TEMPLATES, embed_labels

from . import captions, world
from .captions import Language

SEED = 77  # not training's
GOAL = 0.95


@dataclass(frozen=True)
class Question:
    """Labels that name these attributes, one for each combination that there is. `held_out`: asked of the pairs that no
    training saw.
    """

    named: frozenset[str]
    bare: bool = False  # labels without article or measure word
    templates: bool = False  # InternVL's sentences for the language, around bare labels
    held_out: bool = False

    def label(self, thing: world.Thing, language: Language) -> str:
        phrase = language.bare_phrase if self.bare or self.templates else language.noun_phrase
        return phrase(thing, self.named)


_SHAPE, _PAIR = frozenset({"shape"}), frozenset({"colour", "shape"})
QUESTIONS = {
    "shape": Question(_SHAPE),
    "colour": Question(frozenset({"colour"})),
    "colour and shape": Question(_PAIR),
    "pairs never trained": Question(_PAIR, held_out=True),
    "colour, shape, size": Question(frozenset(captions.ATTRIBUTES)),
    "shape in templates": Question(_SHAPE, templates=True),
    "colour and shape in templates": Question(_PAIR, templates=True),
    "shape without article": Question(_SHAPE, bare=True),
    "colour and shape without article": Question(_PAIR, bare=True),
}


@dataclass(frozen=True)
class Pictures:
    """Things, and the vectors [N, E] of a drawing of each."""

    things: tuple[world.Thing, ...]
    vectors: torch.Tensor


def look(loaded: LoadedInternVL, drawings: int, seed: int = SEED) -> Pictures:
    """So many new drawings of every thing."""
    rng, things = np.random.default_rng(seed), world.THINGS * drawings
    drawn = [torch.from_numpy(world.draw(thing, rng)).float() / 255 for thing in things]
    return Pictures(things, loaded.embed_images(drawn))


def examine(
    loaded: LoadedInternVL,
    pictures: Pictures,
    languages: Sequence[str],
    questions: Mapping[str, Question] = QUESTIONS,
    on_language: Callable[[str], None] = lambda language: None,
) -> dict[str, dict[str, float]]:
    """Language -> question -> the share of pictures whose best label is right. Templates are not asked of languages
    that have none.
    """
    found = {}
    for language in languages:
        found[language] = {
            name: _share(loaded, pictures, question, language)
            for name, question in questions.items()
            if not question.templates or language in BUILT_IN
        }
        on_language(language)
    return found


def _share(loaded: LoadedInternVL, pictures: Pictures, question: Question, language: str) -> float:
    words = captions.LANGUAGES[language]
    labels = list(dict.fromkeys(question.label(thing, words) for thing in world.THINGS))
    vectors = embed_labels(loaded, labels, BUILT_IN[language].sentences if question.templates else NO_TEMPLATES)
    best = (pictures.vectors @ vectors.T).argmax(dim=1).tolist()
    right = [
        labels[answer] == question.label(thing, words)
        for thing, answer in zip(pictures.things, best, strict=True)
        if thing.held_out == question.held_out
    ]
    return sum(right) / len(right)
