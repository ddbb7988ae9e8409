"""`dev.py eval`: what the tiny VisionLLM scores on pictures it never saw."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from itertools import chain
from pathlib import Path

from ..comfyui import open_comfyui
from .telling import Ticker, located, table, tell

FILE = "visionllm_scores.md"
SCENES = 300
ABOUT_REGIONS = 2  # so many times fewer questions of each kind about regions than scenes


def evaluation(comfyui: Path, cpu: bool, output: Path, options: Namespace) -> None:
    """`options.scenes` of things that were trained, then a quarter as many of those that never were; writes
    output/visionllm_scores.md. Beside it a table of questions about regions.
    """
    open_comfyui(*(["--cpu"] if cpu else []))
    from mulan_nodes.mulan.tiny_models.unpacking import VISIONLLM
    from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

    from ..tinyworld_visionllm import scenes
    from ..tinyworld_visionllm.examination import GOALS, examine, held_out_scenes
    from ..tinyworld_visionllm.region_examination import examine_regions
    from ..tinyworld_visionllm.region_questions import KINDS

    loaded, count, ticker = load_visionllm(located(comfyui, VISIONLLM)), options.scenes or SCENES, Ticker()
    columns = {"trained things": (scenes.SEEN, count), "things never trained": (scenes.UNSEEN, count // 4)}
    found, about_regions = {}, {}
    for title, (things, number) in columns.items():

        def done(index, title=title, what="scene", of=number):
            ticker.show(f"{title}: {what} {index + 1} of {of}")

        found[title] = examine(loaded, held_out_scenes(number, things), on_scene=done)
        each = max(1, number // ABOUT_REGIONS)
        asked = partial(done, what="question about regions", of=each * len(KINDS))
        about_regions[title] = each, examine_regions(loaded, each, things, on_question=asked)
    ticker.end()
    rows = []
    for name in next(iter(found.values())).scores:
        cells = [
            (f"{scores.scores[name]:.3f}", str(scores.counts[name])) if name in scores.scores else ("", "0")
            for scores in found.values()
        ]
        rows.append([name, str(GOALS.get(name, "")), *chain(*cells)])
    heads = ("what", "goal", *chain(*((title, "of") for title in columns)))
    tell(f"{table(heads, rows)}\n{_regions_table(about_regions)}", output / FILE)


def _regions_table(about_regions: dict[str, tuple[int, dict[str, dict[str, float]]]]) -> str:
    """Answers about regions: questions in rows, marks in columns."""
    from ..tinyworld_visionllm.region_examination import GOAL, MARKS
    from ..tinyworld_visionllm.region_questions import KINDS

    rows = [
        [kind, *(f"{scores[kind][mark]:.2f}" for _, scores in about_regions.values() for mark in MARKS)]
        for kind in KINDS
    ]
    heads = [f"{title}, {mark}, {each} each" for title, (each, _) in about_regions.items() for mark in MARKS]
    return table((f"question about regions (goal {GOAL})", *heads), rows)
