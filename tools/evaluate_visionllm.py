"""`dev.py eval`: what the tiny VisionLLM scores on pictures it never saw."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from .comfyui import open_comfyui


def evaluation(comfyui: Path, cpu: bool, output: Path, count: int) -> None:
    """`count` scenes of things that were trained, then a quarter as many of those that never were; writes
    output/visionllm_scores.md.
    """
    open_comfyui(*(["--cpu"] if cpu else []))
    from mulan_nodes.mulan.tiny_models.unpacking import VISIONLLM
    from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

    from .tinyworld_visionllm import scenes
    from .tinyworld_visionllm.examination import GOALS, examine, held_out_scenes

    loaded, start = load_visionllm(comfyui / "models" / VISIONLLM.folder / VISIONLLM.name), time.monotonic()
    columns = {"trained things": (scenes.SEEN, count), "things never trained": (scenes.UNSEEN, count // 4)}
    found = {}
    for title, (things, number) in columns.items():

        def done(index, title=title, number=number):
            if sys.stdout.isatty() or index + 1 == number:
                print(
                    f"\r  {title}: scene {index + 1} of {number}, {time.monotonic() - start:.0f} s",
                    end="\n" if index + 1 == number else "",
                    flush=True,
                )

        found[title] = examine(loaded, held_out_scenes(number, things), on_scene=done)
    lines = [
        f"| what | goal | {' | '.join(f'{title} | of' for title in columns)} |",
        "| --- | --: |" + " --: | --: |" * len(columns),
    ]
    for name in next(iter(found.values())).scores:
        cells = [
            f"{scores.scores[name]:.3f} | {scores.counts[name]}" if name in scores.scores else " | 0"
            for scores in found.values()
        ]
        lines.append(f"| {name} | {GOALS.get(name, '')} | {' | '.join(cells)} |")
    output.mkdir(exist_ok=True)
    (output / "visionllm_scores.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines), f"\nThe table: {os.path.relpath(output / 'visionllm_scores.md')}", sep="\n")
