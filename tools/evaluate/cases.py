"""Scores pictures per language: cases say what was asked for, a reader says what a picture shows, rows sum it up.

Nothing here draws: whoever has a way to make pictures from prompts runs the cases and hands the pictures to a reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..emoji_world.concepts import language_of_script, script_of
from ..tinyworld import captions, world

MULAN = "MuLan"
OWN_CLIP = "base model alone"
WITHIN = " within "  # between the codes of a mixed prompt's languages: the colour's, the rest's
TINY_WORLD_HEADINGS = {"right": "colour and shape", "strict": "strict", "colour": "colour", "shape": "shape"}


@dataclass(frozen=True)
class Case:
    """One picture to make and read.

    row: what reads the prompt, `MULAN` or `OWN_CLIP` (the base model without MuLan). language: its code, such as "zh",
    or "zh within en".
    expected: what the picture should show, in the reader's terms.
    """

    row: str
    language: str
    prompt: str
    seed: int
    expected: Any


class Reader(Protocol):
    """Scores one picture, uint8 [height, width, 3], against its case: {score's name: value}, the same names for every
    case.
    """

    def __call__(self, picture: np.ndarray, case: Case) -> dict[str, float]: ...


@dataclass(frozen=True)
class Row:
    """One line of the table: the means of each score over its pictures."""

    row: str
    language: str
    pictures: int
    scores: dict[str, float] = field(default_factory=dict)


class TinyWorldReader:
    """Reads pictures of the tiny world; every score is 0 or 1.

    right: colour and shape are those asked for. strict: the shape is, and hardly any of it has another colour. colour,
    shape: each alone. `case.expected` is a `world.Thing`.
    """

    def __call__(self, picture: np.ndarray, case: Case) -> dict[str, float]:
        reading, thing = world.read(world.shrunk(picture)), case.expected
        return {
            "right": float(reading.agrees(thing)),
            "strict": float(reading.agrees_strictly(thing)),
            "colour": float(reading.colour == thing.colour),
            "shape": float(reading.shape == thing.shape),
        }


class ClipSimilarity:
    """Cosine similarity, in [-1, 1], between a picture and what its prompt means in English (`case.expected`), as a
    CLIP model sees it.

    folder: a CLIP model as transformers saves it, with its processor. Needs the transformers package, which nothing
    else here does.
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        from transformers import CLIPModel, CLIPProcessor

        self._model = CLIPModel.from_pretrained(folder, local_files_only=True).train(False)
        self._model.to(device)  # pyright: ignore[reportArgumentType]  (transformers' decorator hides the method)
        self._processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def __call__(self, picture: np.ndarray, case: Case) -> dict[str, float]:
        options: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
        inputs = self._processor(text=[case.expected], images=picture, **options)
        seen = self._model(**inputs.to(self._model.device))
        return {"similarity": torch.cosine_similarity(seen.image_embeds, seen.text_embeds).item()}


@dataclass(frozen=True)
class Draw:
    """What one picture of every language is made from: the same thing, the same kind of sentence, the same noise."""

    thing: world.Thing
    template: int
    seed: int


def tiny_world_draws(count: int, seed: int, things: Sequence[world.Thing] = world.SEEN_THINGS) -> list[Draw]:
    """`count` draws in which every one of the things turns up equally often, as far as `count` allows."""
    rng = np.random.default_rng(seed)
    chosen = [things[index] for _ in range(0, count, len(things)) for index in rng.permutation(len(things))]
    return [Draw(thing, int(rng.integers(60)), seed * 10_000 + number) for number, thing in enumerate(chosen[:count])]


def tiny_world_cases(row: str, language: str, draws: Sequence[Draw]) -> list[Case]:
    return [
        Case(row, language, captions.full_caption(draw.thing, language, draw.template), draw.seed, draw.thing)
        for draw in draws
    ]


def mixed_cases(draws: Sequence[Draw]) -> list[Case]:
    """The draws with the colour in a word of another script, for each pair of scripts."""
    return [
        Case(
            MULAN,
            f"{of_colour}{WITHIN}{code}",
            captions.mixed_caption(draw.thing, code, of_colour, draw.template),
            draw.seed,
            draw.thing,
        )
        for code, of_colour in permutations(language_of_script(captions.TRAINED).values(), 2)
        for draw in draws
    ]


def tiny_world_evaluation(pictures_per_language: int, seed: int) -> list[Case]:
    """English through the base model alone, and every language through MuLan, with the same draws throughout.

    Then two rows that need fewer pictures: a third as many for what the base model alone makes of the other languages,
    and a sixth as many for each trained language of the pairs of colour and shape that neither text encoder nor adapter
    saw in training. Last, as many for each pair of scripts in one prompt.
    """
    draws = tiny_world_draws(pictures_per_language, seed)
    held_out = tiny_world_draws(
        math.ceil(pictures_per_language / 6), seed, [thing for thing in world.THINGS if thing.held_out]
    )
    others = [language for language in captions.TRAINED if language != "en"]
    plan = [
        (OWN_CLIP, ["en"], draws),
        (MULAN, captions.LANGUAGES, draws),
        (OWN_CLIP, others, draws[: math.ceil(len(draws) / 3)]),
        (MULAN, captions.TRAINED, held_out),
    ]
    return [
        case
        for row, languages, drawn in plan
        for language in languages
        for case in tiny_world_cases(row, language, drawn)
    ] + mixed_cases(draws[: math.ceil(pictures_per_language / 6)])


def summarise(
    cases: Sequence[Case],
    scores: Sequence[dict[str, float]],
    line: Callable[[Case], tuple[str, str]] = lambda case: (case.row, case.language),
) -> list[Row]:
    """The means of the scores, one Row for every (row, language) that `line` gives, in the order in which they first
    come.
    """
    lines: dict[tuple[str, str], list[dict[str, float]]] = {}
    for case, score in zip(cases, scores, strict=True):
        lines.setdefault(line(case), []).append(score)
    return [
        Row(
            row,
            language,
            len(members),
            {name: sum(score[name] for score in members) / len(members) for name in members[0]},
        )
        for (row, language), members in lines.items()
    ]


def tiny_world_rows(cases: Sequence[Case], scores: Sequence[dict[str, float]]) -> list[Row]:
    """A row per language, then what they come to: means, the colour-shape pairs held out of training, and chance."""

    def rows(label: Callable[[Case], str], holds: Callable[[Case], bool]) -> list[Row]:
        chosen = [(case, score) for case, score in zip(cases, scores, strict=True) if holds(case)]
        return summarise(
            [case for case, _ in chosen], [score for _, score in chosen], lambda case: (case.row, label(case))
        )

    def is_other(case: Case) -> bool:
        return case.language in captions.TRAINED and case.language != "en"

    def is_mixed(case: Case) -> bool:
        return WITHIN in case.language

    def script_of_colour(case: Case) -> str:
        return f"colours in {script_of(case.language.partition(WITHIN)[0])}, the rest in each of the other scripts"

    chance = {
        "right": 1 / (len(world.PALETTE) * len(world.SHAPES)),
        "colour": 1 / len(world.PALETTE),
        "shape": 1 / len(world.SHAPES),
    }
    return [
        *rows(
            lambda case: language_label(case.language), lambda case: not case.expected.held_out and not is_mixed(case)
        ),
        *rows(
            lambda case: "all trained languages but English", lambda case: is_other(case) and not case.expected.held_out
        ),
        *rows(
            lambda case: (
                "pairs of colour and shape never trained: " + ("the other languages" if is_other(case) else "English")
            ),
            lambda case: case.expected.held_out,
        ),
        *rows(script_of_colour, is_mixed),
        Row("", "chance", 0, chance),
    ]


def language_label(language: str) -> str:
    if WITHIN in language:
        return WITHIN.join(map(language_label, language.split(WITHIN)))
    label = captions.LANGUAGES[language].name
    return label if language in captions.TRAINED else f"{label} (never trained)"


def as_markdown(rows: Sequence[Row], headings: dict[str, str]) -> str:
    """The rows as a table; `headings`: which scores to show and what to call them. A score that a row lacks stays
    empty.
    """

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def shown(row: Row, name: str) -> str:
        return f"{row.scores[name]:.2f}" if name in row.scores else ""

    table = [
        line(["prompts", "read by", "pictures", *headings.values()]),
        line(["---", "---", *["--:"] * (len(headings) + 1)]),
    ]
    table += [
        line([row.language, row.row, str(row.pictures or ""), *(shown(row, name) for name in headings)]) for row in rows
    ]
    return "\n".join(table) + "\n"
