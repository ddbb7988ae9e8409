"""What `dev.py bench --internvl` does: InternVL's texts, pictures and orders beside the plain ways to the same, rounds,
output.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .internvl_report import markdown
from .run import machine
from .sections import Rounds, Say, checked, difference, parser_of, run
from .worker import peak_bytes, profiled, timed

if TYPE_CHECKING:
    from .internvl_work import Folders, Way

    Look = Callable[[Way], tuple[torch.Tensor | list[int], dict]]  # runs a way -> its result, and figures by name

SECTIONS = ("texts", "zeroshot", "pictures", "ranking", "folder", "profiles")


def main(arguments: list[str], comfyui: Path, cache: Path, output: Path) -> int:
    return run("internvl", parse(arguments), measure, markdown, comfyui, cache, output)


def parse(arguments: list[str]) -> argparse.Namespace:
    return parser_of("internvl", "InternVL", SECTIONS).parse_args(arguments)


def measure(options: argparse.Namespace, cache: Path, known: dict, say: Say) -> Iterator[dict]:
    """`known` and the figures so far, after each section; the last are all. ComfyUI is open already."""
    from .internvl_work import (
        QUICK,
        SIZES,
        TEMPLATES,
        WHOLE,
        Amounts,
        Folders,
        Pictures,
        Texts,
        load,
        orders,
        write_checkpoint,
    )

    amounts, sizes = (Amounts.few(), QUICK) if options.quick else (Amounts(), SIZES)
    cache.mkdir(parents=True, exist_ok=True)
    only, either = load(write_checkpoint(cache, sizes, say))
    texts, pictures = Texts(only, amounts), Pictures(only, either, amounts)
    results = {
        **known,
        "machine": machine(),
        "threads": options.threads,
        "repeat": options.repeat,
        "amounts": asdict(amounts),
        "sizes": {name: sizes[name] for name in WHOLE},
        "whole": WHOLE,
    }
    run = partial(compared, repeat=options.repeat, say=say)
    sections = {
        "texts": lambda: {"tokens": texts.tokens(texts.texts), "ways": run(texts.labels(), look=texts.rows)},
        "zeroshot": lambda: {
            "templates": len(TEMPLATES),
            "tokens": texts.tokens(texts.sentences),
            "ways": run(texts.zeroshot(), look=texts.rows),
        },
        "pictures": lambda: {mode: run(ways, look=peak) for mode, ways in pictures.modes().items()},
        "ranking": lambda: run(orders(amounts)),
        "folder": lambda: measure_folders(Folders(only, pictures, cache, amounts), options.repeat, say),
        "profiles": lambda: {
            "texts": profiled(texts.labels()["ours"]),
            **{f"pictures in mode {mode}": profiled(ways["ours"]) for mode, ways in pictures.modes().items()},
        },
    }
    for name in options.only or SECTIONS:
        say(name)
        results = {**results, name: sections[name]()}
        yield results


def compared(
    ways: dict[str, Way], repeat: int, say: Say, look: Look = lambda way: (way(), {})
) -> dict[str, dict[str, float]]:
    """Per way, of which the first is ours: seconds, how far its result is from ours, and what `look` has seen.

    The first pass, under `look`, warms up and is compared: the run stops where results differ.
    """
    rounds, ours, found = Rounds(), None, {}
    for name, way in ways.items():
        result, seen = look(way)
        result = torch.as_tensor(result).float()
        ours = result if ours is None else ours
        found[name] = {"differ": checked(name, difference(result, ours)), **seen}
    for number in range(1, repeat + 1):
        for name, way in ways.items():
            rounds.note(name, times=timed(way)[0])
        say(f"  round {number} of {repeat}")
    return {name: {**figures, **rounds.median(name)} for name, figures in found.items()}


def peak(way: Way) -> tuple[torch.Tensor | list[int], dict[str, int]]:
    """The most bytes that torch holds meanwhile."""
    return way(), {"peak": peak_bytes(way)}


def measure_folders(folders: Folders, repeat: int, say: Say) -> dict:
    """What takes how long: a folder that was seen before, and pictures that are new."""
    rounds, counts = Rounds(), {}
    for number in range(repeat + 1):  # the first warms up
        for name, way in (("seen", folders.seen), ("new", folders.new)):
            times, vectors = timed(way)
            counts[name] = len(vectors)
            if number:
                rounds.note(name, times=times)
        say(f"  round {number} of {repeat}")
    return {
        "bytes": folders.bytes,
        **{name: {"pictures": count, **rounds.median(name)} for name, count in counts.items()},
    }
