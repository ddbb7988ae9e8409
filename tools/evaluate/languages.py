"""Draws names in 113 languages through a real ComfyUI and has a strict reader judge them: what `dev.py demo` and
`dev.py eval languages` do.
"""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from mulan_nodes.mulan.tiny_models.unpacking import EMOJI_ADAPTER, EMOJI_CHECKPOINT

from .. import graphs
from ..comfy_server import decode
from ..contact_sheet import SheetRow, contact_sheet
from ..emoji_world.concepts import CHARACTERS, english, languages, trained_languages
from ..emoji_world.evaluation import EmojiReader, all_cases, as_table, name_cases
from .cases import MULAN, OWN_CLIP, Case
from .mulan import GRAPH, Result, draw_and_score, shown

DEMO_THINGS = tuple(CHARACTERS.index(character) for character in "🦁🚀🍓🦋🌻🌈🍔🎸")
DEMO_LEAST_SHARE = 0.8  # of the demo's images that must be right
# A language of each script, and more of the scripts that many languages share.
SHOWN = (
    *("en", "es", "vi", "sw", "zh", "ja", "ko", "ar", "fa", "he", "ru", "uk", "el", "hy"),
    *("ka", "hi", "bn", "ta", "te", "th", "km", "my", "am", "chr"),
)
SIZE, STEPS, CFG = 96, 10, 3.0


def graph(template: dict) -> dict:
    """The graph of text to image with the emoji world's models and size."""
    changed = graphs.change(template, "CheckpointLoaderSimple", ckpt_name=EMOJI_CHECKPOINT.name)
    changed = graphs.change(changed, "MuLanLoader", adapter=EMOJI_ADAPTER.name)
    changed = graphs.change(changed, "EmptyLatentImage", width=SIZE, height=SIZE)
    return graphs.change(changed, "KSampler", steps=STEPS, cfg=CFG)


def demo(comfyui: Path, cpu: bool, output: Path) -> bool:
    """Eight things in every trained language: two sheets, every image, and whether enough of them are right.

    The languages that are shown come first: their sheet is there while the others are drawn.
    """
    chosen = [(thing, seed) for seed, thing in enumerate(DEMO_THINGS, start=1)]
    cases = name_cases(OWN_CLIP, "en", chosen) + name_cases(OWN_CLIP, "zh", chosen)
    cases += [case for code in dict.fromkeys(SHOWN + trained_languages()) for case in name_cases(MULAN, code, chosen)]
    last_shown = max(number for number, case in enumerate(cases) if case.language in SHOWN)
    folder, results = output / "languages", []
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, result in enumerate(draw_and_judge(comfyui, cpu, output, cases)):
        results.append(result)
        name = english(result.case.expected.thing).replace(" ", "_")
        row = "" if result.case.row == MULAN else "without_mulan_"
        (folder / f"{row}{result.case.language}_{name}.png").write_bytes(result.file)
        if number == last_shown:
            save_sheet(results, SHOWN, output / "languages.png")
    save_sheet(results, trained_languages(), output / "all_languages.png")
    right = [result.scores["right"] for result in results if result.case.row == MULAN]
    print(f"The images: {shown(folder)}; {sum(right):.0f} of {len(right)} through MuLan are right, strictly read")
    return sum(right) >= DEMO_LEAST_SHARE * len(right)


def save_sheet(results: Sequence[Result], codes: Sequence[str], path: Path) -> None:
    sheet(results, codes).save(path)
    print(f"The sheet: {shown(path)}")


def sheet(results: Sequence[Result], codes: Sequence[str]) -> Image.Image:
    """A row per language, without and with MuLan; a name that a language lacks leaves its cell empty."""
    drawn = {
        (result.case.row, result.case.language, result.case.expected.thing): decode(result.file) for result in results
    }
    empty = np.full((SIZE, SIZE, 3), 255, np.uint8)

    def row(kind: str, code: str) -> SheetRow:
        language = languages()[code]
        own_name = language.own_name if language.own_name != language.name else ""
        return SheetRow(language.name, own_name, [drawn.get((kind, code, thing), empty) for thing in DEMO_THINGS])

    sections = {
        "Without MuLan": [row(OWN_CLIP, code) for code in ("en", "zh")],
        "With MuLan": [row(MULAN, code) for code in codes],
    }
    subtitle = "Each prompt is one word. In a column only its language changes. The adapter learned from English alone."
    heads = [english(thing) for thing in DEMO_THINGS]
    return contact_sheet(f"One word in {len(codes)} languages", subtitle, heads, sections, cell=SIZE)


def draw_and_judge(comfyui: Path, cpu: bool, output: Path, cases: list[Case]) -> Iterator[Result]:
    """Draw the cases with the emoji world's models and have them read strictly."""
    template = graph(graphs.load(GRAPH))
    return draw_and_score(comfyui, cpu, output, cases, EmojiReader(), template, lambda code: languages()[code].name)


def evaluation(comfyui: Path, cpu: bool, output: Path, options: Namespace) -> None:
    """Draw, judge, and write output/languages.md and languages.json."""
    cases = all_cases(options.pictures, options.seed, options.language or list(languages()))
    results = [(result.case, result.scores["right"]) for result in draw_and_judge(comfyui, cpu, output, cases)]
    table, readings = output / "languages.md", output / "languages.json"
    table.write_text(as_table(results), "utf-8")
    readings.write_text(
        json.dumps([{**asdict(case), "right": right} for case, right in results], ensure_ascii=False, indent=0), "utf-8"
    )
    print(f"{table.read_text('utf-8')}\nThe table: {shown(table)}\nEvery prompt and reading: {shown(readings)}")
