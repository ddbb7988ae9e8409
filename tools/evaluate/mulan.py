"""Draws pictures through a real ComfyUI, has them read and tabled: what `dev.py demo` and `dev.py eval` do."""

import json
import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from .. import graphs
from ..comfy_server import ComfyServer, decode
from ..contact_sheet import SheetRow, contact_sheet
from ..tinyworld import pixart, sdxl
from ..tinyworld.captions import LANGUAGES, TRAINED
from ..tinyworld.world import Thing
from .cases import (
    MULAN,
    OWN_CLIP,
    TINY_WORLD_HEADINGS,
    Case,
    Draw,
    Reader,
    TinyWorldReader,
    as_markdown,
    language_label,
    tiny_world_cases,
    tiny_world_evaluation,
    tiny_world_rows,
)

GRAPH = "mulan_text_to_image"
DEMO_THINGS = [
    Thing("red", "circle", "big"),
    Thing("blue", "star", "small"),
    Thing("green", "square", "big"),
    Thing("purple", "triangle", "big"),
    Thing("yellow", "star", "small"),
    Thing("black", "circle", "big"),
]
DEMO_LEAST_SHARE = (
    0.7  # of the pictures through MuLan that must be right: far below what the tiny models do, far above chance (0.04)
)

Progress = Callable[[int, int, int], None]  # (case number, step, steps)


@dataclass(frozen=True)
class Result:
    case: Case
    file: bytes  # the PNG as the server wrote it, with its graph inside
    scores: dict[str, float]


def demo(comfyui: Path, cpu: bool, output: Path) -> bool:
    """Six things in twelve languages, as a sheet, as files and as a table; whether enough of them are right."""
    draws = [Draw(thing, template=0, seed=seed) for seed, thing in enumerate(DEMO_THINGS, start=1)]
    lines = [(OWN_CLIP, "en"), (OWN_CLIP, "zh"), *((MULAN, language) for language in TRAINED)]
    cases = [case for row, language in lines for case in tiny_world_cases(row, language, draws)]
    results = list(draw_and_score(comfyui, cpu, output, cases, TinyWorldReader(), graphs.load(GRAPH)))
    print(table(results))

    folder = output / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for result in results:
        with_or_without, thing = "with" if result.case.row == MULAN else "without", result.case.expected
        name = f"{with_or_without}_mulan_{result.case.language}_{thing.size}_{thing.colour}_{thing.shape}.png"
        (folder / name).write_bytes(result.file)
    sheet = output / "contact_sheet.png"
    demo_sheet(results).save(sheet)
    print(
        f"The sheet: {shown(sheet)}\nThe pictures: {shown(folder)} (each opens in the editor as the graph that made it)"
    )

    drawn = [result.scores["right"] for result in results if result.case.row == MULAN]
    share = sum(drawn) / len(drawn)
    if share < DEMO_LEAST_SHARE:
        print(
            f"Only {share:.0%} of the pictures through MuLan are right, {DEMO_LEAST_SHARE:.0%} are the least: "
            "something is broken."
        )
    return share >= DEMO_LEAST_SHARE


def evaluation(comfyui: Path, cpu: bool, output: Path, options: Namespace) -> None:
    """The full measure: every language, the base model alone, and the languages and pairs that no training saw.

    With `options.text_encoder`, another than the tiny one, or the tiny SDXL or PixArt, which have no text encoders of
    their own, without what the base model draws alone.
    """
    text_encoder, cases = options.text_encoder, tiny_world_evaluation(options.pictures, options.seed)
    other = {"sdxl": sdxl, "pixart": pixart}.get(options.family)
    cases = [case for case in cases if case.row == MULAN or not (text_encoder or other)]
    graph = graphs.load(GRAPH)
    if other:
        other.write_models(comfyui / "models")
        graph = other.graph(graph)
    if text_encoder:
        graph = graphs.change(graph, "MuLan Loader", text_encoder=text_encoder)
    results = list(draw_and_score(comfyui, cpu, output, cases, TinyWorldReader(), graph))
    scores, readings = output / "scores.md", output / "eval.json"
    scores.write_text(table(results), "utf-8")
    lines = [json.dumps({**asdict(result.case), "scores": result.scores}, ensure_ascii=False) for result in results]
    readings.write_text("[" + ",\n ".join(lines) + "]\n", "utf-8")
    print(f"{table(results)}\nThe table: {shown(scores)}\nEvery prompt, seed and reading: {shown(readings)}")


def draw_and_score(
    comfyui: Path,
    cpu: bool,
    output: Path,
    cases: list[Case],
    reader: Reader,
    template: dict,
    label: Callable[[str], str] = language_label,
) -> Iterator[Result]:
    """Draw the cases through a server started for them, telling how far it is. label: a language's code -> its name."""
    output.mkdir(exist_ok=True)
    log, start = output / "server.log", time.monotonic()
    print(f"starting ComfyUI (its log: {shown(log)}) ...", flush=True)
    with ComfyServer(comfyui, cpu=cpu, log=log) as server:
        print(f"  it answers after {time.monotonic() - start:.0f} s; {len(cases)} pictures to draw", flush=True)
        ticker = Ticker(cases, label)
        for number, result in enumerate(draw_all(server, cases, reader, template, ticker.step)):
            ticker.drawn(number)
            yield result


def draw_all(
    server: ComfyServer, cases: list[Case], reader: Reader, template: dict, progress: Progress | None = None
) -> Iterator[Result]:
    """Queue every case at once and yield the results in their order."""
    tickets = [server.post(graph_of(case, template)) for case in cases]
    for number, (case, ticket) in enumerate(zip(cases, tickets, strict=True)):
        note = (lambda _, step, steps, number=number: progress(number, step, steps)) if progress else None
        (file,) = (file for files in server.wait(ticket, note).files.values() for file in files)
        yield Result(case, file, reader(decode(file), case))


def graph_of(case: Case, template: dict) -> dict:
    graph = graphs.change(template, "Prompt", text=case.prompt)
    graph = graphs.change(graph, "KSampler", seed=case.seed)
    return graph if case.row == MULAN else graphs.without_mulan(graph)


class Ticker:
    """One line per language, rewritten in place; where nobody watches, only its last state is written."""

    def __init__(self, cases: list[Case], label: Callable[[str], str]):
        self._cases, self._label = cases, label
        self._start, self._watched = time.monotonic(), sys.stdout.isatty()

    def step(self, number: int, step: int, steps: int) -> None:
        if self._watched:
            self._write(number, f"step {step}/{steps}", "")

    def drawn(self, number: int) -> None:
        if number + 1 == len(self._cases) or self._line(number + 1) != self._line(number):
            self._write(number, "done", "\n")

    def _write(self, number: int, state: str, end: str) -> None:
        row, language = self._line(number)
        line = [other for other in range(len(self._cases)) if self._line(other) == (row, language)]
        seconds = time.monotonic() - self._start
        text = (
            f"  {self._label(language)}, {row}: picture {line.index(number) + 1} of {len(line)}, {state}; "
            f"{number + 1} of {len(self._cases)} pictures in {seconds:.0f} s"
        )
        print(f"\r{text:<79}" if self._watched else text, end=end, flush=True)

    def _line(self, number: int) -> tuple[str, str]:
        return self._cases[number].row, self._cases[number].language


def table(results: list[Result]) -> str:
    rows = tiny_world_rows([result.case for result in results], [result.scores for result in results])
    return as_markdown(rows, TINY_WORLD_HEADINGS)


def demo_sheet(results: list[Result]) -> Image.Image:
    rows: dict[tuple[str, str], list] = {}
    for result in results:
        rows.setdefault((result.case.row, result.case.language), []).append(decode(result.file))
    sections: dict[str, list[SheetRow]] = {}
    for (row, code), drawn in rows.items():
        language = LANGUAGES[code]
        own_name = language.own_name if language.own_name != language.name else ""
        sections.setdefault("With MuLan" if row == MULAN else "Without MuLan", []).append(
            SheetRow(language.name, own_name, drawn)
        )
    subtitle = "In a column only the language of the prompt changes: the thing, the sentence and the seed are the same."
    heads = [f"{thing.size} {thing.colour}\n{thing.shape}" for thing in DEMO_THINGS]
    return contact_sheet("One prompt in twelve languages", subtitle, heads, sections)


def shown(path: Path) -> str:
    """A path as somebody here would type it."""
    return os.path.relpath(path)
