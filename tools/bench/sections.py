"""What the benches of VisionLLM and InternVL share: sections whose figures are written as they come, rounds, and
results that must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..comfyui import open_comfyui

EQUAL = 1e-5  # relative to the largest value
Say = Callable[[str], None]
Measure = Callable[[argparse.Namespace, Path, dict, Say], Iterator[dict]]


def parser_of(name: str, about: str, sections: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"dev.py bench --{name}",
        description=f"Measure {about} on random weights, on the CPU: output/bench_{name}.md. With --gpu beside it: on "
        "this machine's GPU, by tools/gpu_check.",
    )
    parser.add_argument(
        "--only", choices=sections, nargs="+", help="measure these, and keep what an earlier run measured of the others"
    )
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="rounds, of which the median counts (default: 3)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tiny model and few of everything: shows that it runs; its figures mean nothing",
    )
    return parser


def run(
    name: str,
    options: argparse.Namespace,
    measure: Measure,
    markdown: Callable[[dict], str],
    comfyui: Path,
    cache: Path,
    output: Path,
) -> int:
    """Writes table and figures after each section, and prints the table at the end."""
    output.mkdir(exist_ok=True)
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler, which also measures memory, would tell of each start
    open_comfyui("--cpu")
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    figures, table = output / f"bench_{name}.json", output / f"bench_{name}.md"
    known = json.loads(figures.read_text("utf-8")) if options.only and figures.is_file() else {}
    results = {}
    for results in measure(
        options, cache, known, lambda line: print(f"[{time.monotonic() - started:5.0f} s] {line}", flush=True)
    ):
        figures.write_text(json.dumps(results, indent=1), "utf-8")
        table.write_text(markdown(results), "utf-8")
    print(f"\n{markdown(results)}\nThe table: {os.path.relpath(table)}\nEvery figure: {os.path.relpath(figures)}")
    return 0


class Rounds:
    """Seconds by name and clock, of which the median counts."""

    def __init__(self):
        self._taken: dict[tuple, list[dict[str, float]]] = {}

    def note(self, *name, times: dict[str, float]) -> None:
        self._taken.setdefault(name, []).append(times)

    def median(self, *name) -> dict[str, float]:
        return {clock: statistics.median(times[clock] for times in self._taken[name]) for clock in ("cpu", "wall")}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def checked(what: str, value: float) -> float:
    if not value <= EQUAL:
        sys.exit(
            f"{what}: the results differ by {value:.1e} of the largest value, {EQUAL:.0e} is allowed: no time is "
            "worth comparing."
        )
    return value
