"""`dev.py eval`: what the tiny VisionLLM scores on pictures it never saw."""

from __future__ import annotations

from argparse import Namespace
from itertools import chain
from pathlib import Path

from ..comfyui import open_comfyui
from .telling import Ticker, located, table, tell

FILE = "visionllm_scores.md"
SCENES = 300


def evaluation(comfyui: Path, cpu: bool, output: Path, options: Namespace) -> None:
    """`options.scenes` of things that were trained, then a quarter as many of those that never were; writes
    output/visionllm_scores.md.
    """
    open_comfyui(*(["--cpu"] if cpu else []))
    from mulan_nodes.mulan.tiny_models.unpacking import VISIONLLM
    from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

    from ..tinyworld_visionllm import scenes
    from ..tinyworld_visionllm.examination import GOALS, examine, held_out_scenes

    loaded, count, ticker = load_visionllm(located(comfyui, VISIONLLM)), options.scenes or SCENES, Ticker()
    columns = {"trained things": (scenes.SEEN, count), "things never trained": (scenes.UNSEEN, count // 4)}
    found = {}
    for title, (things, number) in columns.items():

        def done(index, title=title, number=number):
            ticker.show(f"{title}: scene {index + 1} of {number}")

        found[title] = examine(loaded, held_out_scenes(number, things), on_scene=done)
    ticker.end()
    rows = []
    for name in next(iter(found.values())).scores:
        cells = [
            (f"{scores.scores[name]:.3f}", str(scores.counts[name])) if name in scores.scores else ("", "0")
            for scores in found.values()
        ]
        rows.append([name, str(GOALS.get(name, "")), *chain(*cells)])
    heads = ("what", "goal", *chain(*((title, "of") for title in columns)))
    tell(table(heads, rows), output / FILE)
