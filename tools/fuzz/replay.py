"""Graphs that failed once, from a folder: a case's file of a model is made again by the graph's name."""

from __future__ import annotations

import json
import re
from pathlib import Path

from . import model_files
from .cases import Case, Cases


def saved_cases(folder: Path, cases: Cases) -> list[Case]:
    """Each graph of the folder as a case."""
    return [_saved(file, cases) for file in sorted(folder.glob("*.json"))]


def _saved(file: Path, cases: Cases) -> Case:
    graph = json.loads(file.read_text("utf-8"))
    id = f"saved/{file.parent.name}/-/{file.stem}"
    for node in graph.values():
        for target in model_files.TARGETS:
            value = node["inputs"].get(target.input)
            if target.node != node["class_type"] or not isinstance(value, str) or not value.startswith(("fz", "fuzz")):
                continue
            if damage := _named(file.stem, target, cases):
                return Case(id, graph, file=(f"{target.folder}/{value}", *damage))
    return Case(id, graph)


def _named(stem: str, target: model_files.Target, cases: Cases):
    """The damage whose name is in the graph's, written in any way."""
    words = _words(stem)
    damages = cases.damages(target)
    best = max(damages, key=lambda name: (len(_words(name) & words) - len(_words(name) - words), -len(name)))
    return damages[best], cases.tiny(target)


def _words(text: str) -> set[str]:
    return {word for word in re.split(r"[^A-Za-z0-9]+", text.lower()) if word}
