"""Every template in every kind of editor: opened, looked at, run; and laid out by what its nodes need."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..comfy_server import ComfyServer
from ..comfyui import has_accelerator, write_example_images
from . import frontends, stand_ins
from .arrange import arrange
from .editor import Editor, Run, find_browser
from .geometry import TITLE, readable

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
PICTURE = 60  # more height for a node that shows a picture than it takes by itself
NOTE, TEXT = 2000, 120  # the most that a note, and any other text, is made higher to be seen whole


@dataclass(frozen=True)
class Mode:
    """A kind of editor: a frontend's version, and how it draws nodes."""

    frontend: str
    vue: bool

    def __str__(self) -> str:
        return f"{self.frontend} {'Nodes 2.0' if self.vue else 'classic'}"


@dataclass
class Look:
    """What one template is like in one mode."""

    mode: Mode
    zoom: float = 0.0
    readable: bool = False
    overlaps: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    run: Run | None = None
    seen: bool = False

    def ran(self) -> str:
        if self.run is None:
            return "not run"
        if self.run.ending != "success":
            return "failed"
        return f"{self.run.seconds:.0f} s{'' if self.seen else ', nothing seen'}"

    def problems(self) -> list[str]:
        found = [f"error: {text}" for text in self.errors]
        found += [f"overlap: {pair}" for pair in self.overlaps]
        found += [f"sticks out of its group: {text}" for text in self.outside]
        found += [f"note is cut: {title}" for title in self.cut]
        if not self.readable:
            found.append(f"opens at zoom {self.zoom:.2f}, at which texts cannot be read")
        if self.run and self.run.ending != "success":
            found.append(f"run: {self.run.ending}: {self.run.message}")
        elif self.run and not self.seen:
            found.append("no result is seen")
        return found


def run(comfyui: Path, options: argparse.Namespace, out: Path) -> int:
    names = options.names or sorted(file.stem for file in WORKFLOWS.glob("*.json"))
    unknown = [name for name in names if not (WORKFLOWS / f"{name}.json").is_file()]
    if unknown:
        sys.exit(f"There is no template {', '.join(unknown)} in {WORKFLOWS}.")
    browser, versions = find_browser(options.browser), [frontends.pinned(), *options.frontend]
    out.mkdir(parents=True, exist_ok=True)
    if options.arrange:
        for name, sizes in measure_needs(comfyui, browser, names, out).items():
            file = WORKFLOWS / f"{name}.json"
            graph = stand_ins.read(file)
            arrange(graph, sizes)
            file.write_text(json.dumps(graph, ensure_ascii=False, indent=1) + "\n", "utf-8")
            print(f"arranged {name}", flush=True)
    looks: dict[str, list[Look]] = {name: [] for name in names}
    for mode, editor in editors(comfyui, versions, browser, out):
        for name in names:
            look = examine(editor, mode, name, out, not options.no_run)
            looks[name].append(look)
            print(f"{mode}: {name}: {'; '.join(look.problems()) or 'good'}", flush=True)
    table = report(looks)
    (out / "templates.md").write_text(table, "utf-8")
    print(table)
    return 1 if any(look.problems() for each in looks.values() for look in each) else 0


def editors(comfyui: Path, versions: list[str], browser: Path | None, out: Path) -> Iterator[tuple[Mode, Editor]]:
    """Yield an editor of each mode, on a server that has the stand-ins and no network."""
    for version in versions:
        with serve(comfyui, version, out) as server:
            for vue in (False, True):
                with Editor(server.url, vue, browser) as editor:
                    yield Mode(version, vue), editor


@contextmanager
def serve(comfyui: Path, version: str, out: Path) -> Iterator[ComfyServer]:
    static = frontends.folder(version)
    with tempfile.TemporaryDirectory(prefix="templates_") as temporary:
        folder = Path(temporary)
        shutil.copytree(comfyui / "input", folder / "input", dirs_exist_ok=True)
        stand_ins.write_small_images(folder / "input")
        write_example_images(folder / "input")
        with ComfyServer(
            comfyui,
            cpu=not has_accelerator(),
            extra_models=stand_ins.folder(),
            folder=folder,
            log=out / f"server_{version}.log",
            arguments=["--front-end-root", str(static)] if static else [],
            environment={"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"},
        ) as server:
            yield server


def examine(editor: Editor, mode: Mode, name: str, out: Path, runs: bool) -> Look:
    """Open a template and look at it; run it, and look again."""
    graph, look = stand_ins.prepare(stand_ins.read(WORKFLOWS / f"{name}.json")), Look(mode)
    view = editor.open(graph, name)
    look.zoom = view["zoom"]
    look.readable = readable(view["zoom"]) and not view["blank"]
    look.errors += [" ".join(text.split()) for text in view["dialogs"]]
    pictures = out / f"{mode.frontend}_{'vue' if mode.vue else 'classic'}"
    editor.screenshot(pictures / f"{name}_1_open.png")
    before = editor.layout()
    hidden = editor.hidden()
    look.cut = [node.title for node in before.nodes if node.note and hidden.get(node.id, 0) > 2]
    layouts = [before]
    if runs:
        look.run = editor.run()
        layouts.append(editor.layout())
        editor.screenshot(pictures / f"{name}_2_run.png")
        look.seen = any(result["pictures"] or result["texts"] for result in look.run.results.values())
    for layout in layouts:
        look.overlaps += [f"{a.title} / {b.title}" for a, b in layout.overlaps()]
        look.outside += [f"{node.title} / {group.title}" for node, group in layout.outside()]
    look.overlaps, look.outside = list(dict.fromkeys(look.overlaps)), list(dict.fromkeys(look.outside))
    look.errors += editor.errors
    return look


def measure_needs(
    comfyui: Path, browser: Path | None, names: list[str], out: Path
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return by template and node the largest body (width, height) that it needs, classic and in Nodes 2.0, before or
    after a run.
    """
    needs: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in names}
    for mode, editor in editors(comfyui, [frontends.pinned()], browser, out):
        for name in names:
            graph = stand_ins.prepare(stand_ins.read(WORKFLOWS / f"{name}.json"))
            for node in graph["nodes"]:
                node["size"][1] = 1  # the editor makes it as high as it must be
            editor.open(graph, name)
            layouts, texts, shown = [editor.layout()], editor.hidden(), {}
            if mode.vue:  # where a result takes more room than in the classic canvas
                run = editor.run()
                layouts, shown = [*layouts, editor.layout()], run.results
                print(f"{mode}: measured {name}: {run.ending} {run.message}", flush=True)
            for layout in layouts:
                for node in layout.nodes:
                    height = node.rectangle.height - TITLE
                    height += min(texts.get(node.id, 0), NOTE if node.note else TEXT)
                    if shown.get(node.id, {}).get("pictures"):
                        height += PICTURE
                    known = needs[name].get(node.id, (0.0, 0.0))
                    needs[name][node.id] = max(known[0], node.rectangle.width), max(known[1], height)
    return needs


def report(looks: dict[str, list[Look]]) -> str:
    """Return a table of all templates in all modes, and what is wrong below it."""
    modes = [look.mode for look in next(iter(looks.values()))]
    lines = [
        "Each cell: zoom at which it opens at 1600x1000 / overlapping pairs / run, in seconds.",
        "",
        "| template | " + " | ".join(map(str, modes)) + " |",
        "|---|" + "---|" * len(modes),
    ]
    for name, each in looks.items():
        cells = []
        for look in each:
            cells.append(f"{look.zoom:.2f} / {len(look.overlaps)} / {look.ran()}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    wrong = [
        f"- {name}, {look.mode}: {problem}"
        for name, each in looks.items()
        for look in each
        for problem in look.problems()
    ]
    good = sum(not look.problems() for each in looks.values() for look in each)
    return "\n".join([*lines, "", f"{good} of {sum(map(len, looks.values()))} without a fault.", *wrong, ""])
