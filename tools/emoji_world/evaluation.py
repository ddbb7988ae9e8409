"""What the emoji world is asked in 113 languages, who judges it, and the table of it.

Nothing here draws, as in `tools/evaluate/cases.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluate.cases import MULAN, OWN_CLIP, Case
from . import captions, reader, sentences
from .concepts import (
    CHARACTERS,
    HELD_OUT,
    HELD_OUT_LANGUAGES,
    SEEN,
    language_of_script,
    languages,
    script_of,
    trained_languages,
)
from .pictures import BACKGROUNDS, is_held_out, read_background

NAMED, SENTENCE, OTHER_SENTENCES, NEVER_SEEN, BACKGROUND, OTHER_BACKGROUNDS, SPACED = (
    "names",
    "English sentences never trained",
    "sentences never trained, in eleven other languages",
    "things never seen by the adapter",
    "pairs of thing and background never seen by the adapter",
    "such pairs, in eleven other languages",
    "names with other white space",
)
KINDS = (SENTENCE, OTHER_SENTENCES, NEVER_SEEN, BACKGROUND, OTHER_BACKGROUNDS, SPACED)  # what is asked beside names
SPACES = ("  {}  ", "\n{}", "{}\n", "\t{} ")


@dataclass(frozen=True)
class Asked:
    """What a picture should show, and how it was asked for; mixed: the scripts of a name and the sentence around it."""

    thing: int
    kind: str = NAMED
    background: str | None = None  # None: any


class EmojiReader:
    """Judges pictures strictly; `case.expected` is an `Asked`."""

    def __init__(self):
        self._reader = reader.load()

    def __call__(self, picture: np.ndarray, case: Case) -> dict[str, float]:
        asked = case.expected
        right = bool(self._reader.agrees(np.array([picture]), [asked.thing])[0])
        return {"right": float(right and asked.background in (None, read_background(picture)))}


def choose(count: int, seed: int, things: Sequence[int] = SEEN, turn: int = 0) -> list[tuple[int, int]]:
    """`count` things with a seed each, every one as often as another, as far as `count` allows.

    turn: the next turn goes on with the next things, so that many small samples together have all of them.
    """
    rng, first = np.random.default_rng(seed), turn * count
    order = [things[place] for _ in range(0, first + count, len(things)) for place in rng.permutation(len(things))]
    return [(thing, seed * 10_000 + first + number) for number, thing in enumerate(order[first : first + count])]


def name_cases(
    row: str, code: str, chosen: Sequence[tuple[int, int]], kind: str = NAMED, frames: Sequence[str] = ("{}",)
) -> list[Case]:
    """The things by their names in a language, in one frame after another; those without a name are left out."""
    return [
        Case(row, code, frames[number % len(frames)].format(name), seed, Asked(thing, kind))
        for number, (thing, seed) in enumerate(chosen)
        if (name := languages()[code].names[thing])
    ]


def sentence_cases(count: int, seed: int, codes: Sequence[str], kind: str) -> list[Case]:
    """The things by their names in sentences that no training saw."""
    cases = []
    for turn, code in enumerate(codes):
        frames = sentences.NEVER_TRAINED[code]
        for number, (thing, noise) in enumerate(choose(count, seed, turn=turn)):
            if name := languages()[code].names[thing]:
                text = sentences.in_frame(frames[number % len(frames)], name)
                cases.append(Case(MULAN, code, text, noise, Asked(thing, kind)))
    return cases


def script_pairs() -> list[tuple[str, str]]:
    """A language of each script, and two languages with sentences of other scripts in turn for each."""
    of_script, around = language_of_script(trained_languages()), language_of_script(captions.COLOURED)
    pairs = []
    for place, (script, code) in enumerate(of_script.items()):
        others = [other for name, other in around.items() if name != script]
        pairs += [(code, others[(2 * place + step) % len(others)]) for step in range(2)]
    return pairs


def mixed_cases(count: int, seed: int) -> list[Case]:
    """A name of one script in sentences of another: `count` for each pair of scripts."""
    cases = []
    for turn, (code, other) in enumerate(script_pairs()):
        kind = f"{script_of(code)} in {script_of(other)}"
        cases += name_cases(MULAN, code, choose(count, seed, turn=turn), kind, captions.frames(other))
    return cases


def background_cases(row: str, count: int, seed: int, codes: Sequence[str], kind: str) -> list[Case]:
    """Things on named backgrounds, in languages that can say so: pairs that the adapter never saw."""
    cases = []
    for turn, code in enumerate(codes):
        for number, (thing, noise) in enumerate(choose(count, seed, turn=turn)):
            held_out = [background for background in BACKGROUNDS if is_held_out(thing, background)]
            background = held_out[number % len(held_out)] if held_out else ""
            name = languages()[code].names[thing]
            if name and background:
                text = captions.coloured(name, code, background)
                cases.append(Case(row, code, text, noise, Asked(thing, kind, background)))
    return cases


def all_cases(count: int, seed: int, codes: Sequence[str]) -> list[Case]:
    """English names of all things, `count` things in every other language, each in its turn so that together they have
    all; then what is asked of fewer pictures.
    """
    fewer, cases = math.ceil(count / 3), []
    for row, each in ((MULAN, count), (OWN_CLIP, fewer)):
        for turn, code in enumerate(codes):
            chosen = choose(len(SEEN), seed) if code == "en" else choose(each, seed, turn=turn)
            cases += name_cases(row, code, chosen)
    cases += sentence_cases(4 * count, seed, ["en"], SENTENCE)
    speaking = [code for code in captions.COLOURED if code != "en"]
    cases += sentence_cases(count, seed, speaking, OTHER_SENTENCES)
    cases += [case for row in (MULAN, OWN_CLIP) for case in background_cases(row, 4 * count, seed, ["en"], BACKGROUND)]
    cases += background_cases(MULAN, fewer, seed, speaking, OTHER_BACKGROUNDS)
    held_out = [place for place, character in enumerate(CHARACTERS) if character in HELD_OUT]
    never = choose(2 * len(held_out), seed, held_out)
    cases += name_cases(MULAN, "en", never, NEVER_SEEN) + name_cases(OWN_CLIP, "en", never, NEVER_SEEN)
    cases += name_cases(MULAN, "en", choose(count, seed), SPACED, SPACES)
    return cases + mixed_cases(fewer, seed)


def as_table(results: Sequence[tuple[Case, float]]) -> str:
    """A line per language: share of right pictures with its 95 % interval, and the base model alone."""
    right: dict[tuple[str, str, str], list[float]] = {}
    for case, score in results:
        right.setdefault((case.row, case.language, case.expected.kind), []).append(score)
    codes = list(dict.fromkeys(case.language for case, _ in results))
    lines = ["| language | with MuLan | 95 % | base model alone |", "| --- | --: | :-: | --: |"]
    for code in sorted(codes, key=lambda code: (code in HELD_OUT_LANGUAGES, code != "en", code)):
        drawn, alone = right.get((MULAN, code, NAMED), []), right.get((OWN_CLIP, code, NAMED), [])
        never = " (never trained)" if code in HELD_OUT_LANGUAGES else ""
        low, high = interval(drawn)
        lines.append(f"| {languages()[code].name}{never} | {share(drawn)} | {low:.2f} to {high:.2f} | {share(alone)} |")
    others = [code for code in codes if code not in ("en", *HELD_OUT_LANGUAGES) and right.get((MULAN, code, NAMED))]
    means = [float(np.mean(right[MULAN, code, NAMED])) for code in others]
    if means:
        lines.append(f"| mean of {len(means)} others | {np.mean(means):.3f} | lowest {min(means):.2f} | |")
    lines += ["", "| asked for | with MuLan | base model alone |", "| --- | --: | --: |"]
    for kind in KINDS:
        drawn, alone = (
            [score for case, score in results if case.expected.kind == kind and case.row == row]
            for row in (MULAN, OWN_CLIP)
        )
        lines.append(f"| {kind} | {share(drawn)} ({len(drawn)}) | {share(alone)} |")
    mixed: dict[str, list[float]] = {}
    for case, score in results:
        if case.expected.kind not in (NAMED, *KINDS):
            mixed.setdefault(case.expected.kind, []).append(score)
    if mixed:
        scores = [score for of_pair in mixed.values() for score in of_pair]
        least, lowest = min((float(np.mean(of_pair)), pair) for pair, of_pair in mixed.items())
        lines.append(
            f"| a name of one script in a sentence of another, {len(mixed)} pairs (lowest: {lowest} {least:.2f}) | "
            f"{share(scores)} ({len(scores)}) | |"
        )
    return "\n".join(lines) + "\n"


def share(scores: Sequence[float]) -> str:
    return f"{np.mean(scores):.2f}" if scores else ""


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    count = len(scores)
    if not count:
        return 0.0, 1.0
    z, mean = 1.96, sum(scores) / count
    middle, half = mean + z * z / (2 * count), z * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)
