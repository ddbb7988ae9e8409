"""Draws names in 113 languages through a real ComfyUI and has a strict reader judge them: `dev.py eval languages`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from . import graphs
from .comfy_server import ComfyServer
from .emoji_world import captions, reader
from .emoji_world.concepts import CHARACTERS, HELD_OUT, HELD_OUT_LANGUAGES, SEEN, languages
from .evaluate_mulan import GRAPH, Ticker, draw_all, shown
from .evaluation import MULAN, OWN_CLIP, Case

CHECKPOINT, ADAPTER = "tiny_emoji_sd15.safetensors", "tiny_emoji_adapter.safetensors"
SIZE, STEPS, CFG = 96, 20, 3.0
NAMED, SENTENCE, NEVER_SEEN = "name", "sentence", "thing never seen by the adapter"


@dataclass(frozen=True)
class Asked:
    """What a picture should show, and how it was asked for."""

    thing: int
    kind: str = NAMED


class EmojiReader:
    """Judges pictures strictly; `case.expected` is an `Asked`."""

    def __init__(self):
        self._reader = reader.load()

    def __call__(self, picture: np.ndarray, case: Case) -> dict[str, float]:
        return {"right": float(self._reader.agrees(picture[None], [case.expected.thing])[0])}


def choose(count: int, seed: int, things: Sequence[int] = SEEN) -> list[tuple[int, int]]:
    """`count` things with a seed each, every one as often as another, as far as `count` allows."""
    rng = np.random.default_rng(seed)
    chosen = [things[place] for _ in range(0, count, len(things)) for place in rng.permutation(len(things))][:count]
    return [(thing, seed * 10_000 + number) for number, thing in enumerate(chosen)]


def name_cases(row: str, code: str, chosen: Sequence[tuple[int, int]], kind: str = NAMED) -> list[Case]:
    """The things by their names in a language; those without one are left out."""
    return [
        Case(row, code, name, seed, Asked(thing, kind))
        for thing, seed in chosen
        if (name := languages()[code].names[thing])
    ]


def all_cases(count: int, seed: int, codes: Sequence[str]) -> list[Case]:
    """Names in every language with the same things and noise; then what is asked of fewer: the base alone, English
    sentences that no training saw, things that the adapter never saw.
    """
    chosen = choose(count, seed)
    fewer = chosen[: math.ceil(count / 3)]
    cases = [case for code in codes for case in name_cases(MULAN, code, chosen)]
    cases += [case for code in codes for case in name_cases(OWN_CLIP, code, chosen if code == "en" else fewer)]
    for thing, noise in chosen:
        template = captions.UNSEEN_ENGLISH[thing % len(captions.UNSEEN_ENGLISH)]
        text = captions.english_sentence(thing, template)
        cases.append(Case(MULAN, "en", text, noise, Asked(thing, SENTENCE)))
    held_out = [place for place, character in enumerate(CHARACTERS) if character in HELD_OUT]
    never = choose(2 * len(held_out), seed, held_out)
    return cases + name_cases(MULAN, "en", never, NEVER_SEEN) + name_cases(OWN_CLIP, "en", never, NEVER_SEEN)


def graph(template: dict) -> dict:
    """The graph of text to image with the emoji world's models and size."""
    changed = graphs.change(template, "CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    changed = graphs.change(changed, "MuLanLoader", adapter=ADAPTER)
    changed = graphs.change(changed, "EmptyLatentImage", width=SIZE, height=SIZE)
    return graphs.change(changed, "KSampler", steps=STEPS, cfg=CFG)


def evaluation(comfyui: Path, cpu: bool, output: Path, pictures: int, seed: int, codes: Sequence[str] = ()) -> None:
    """Draw, judge, and write output/languages.md and languages.json."""
    cases = all_cases(pictures, seed, codes or list(languages()))
    output.mkdir(exist_ok=True)
    results, judge = [], EmojiReader()
    with ComfyServer(comfyui, cpu=cpu, log=output / "server.log") as server:
        ticker = Ticker(cases)
        for result in draw_all(server, cases, judge, graph(graphs.load(GRAPH)), ticker.step):
            ticker.drawn(len(results))
            results.append((result.case, result.scores["right"]))
    table, readings = output / "languages.md", output / "languages.json"
    table.write_text(as_table(results), "utf-8")
    readings.write_text(
        json.dumps([{**asdict(case), "right": right} for case, right in results], ensure_ascii=False, indent=0), "utf-8"
    )
    print(f"{table.read_text('utf-8')}\nThe table: {shown(table)}\nEvery prompt and reading: {shown(readings)}")


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
        lines.append(f"| {code}{never} | {share(drawn)} | {low:.2f} to {high:.2f} | {share(alone)} |")
    others = [code for code in codes if code not in ("en", *HELD_OUT_LANGUAGES) and right.get((MULAN, code, NAMED))]
    means = [float(np.mean(right[MULAN, code, NAMED])) for code in others]
    if means:
        lines.append(f"| mean of {len(means)} others | {np.mean(means):.3f} | lowest {min(means):.2f} | |")
    for kind in (SENTENCE, NEVER_SEEN):
        drawn, alone = right.get((MULAN, "en", kind), []), right.get((OWN_CLIP, "en", kind), [])
        lines.append(f"| en, {kind} | {share(drawn)} | | {share(alone)} |")
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
