"""Graphs through a real server on the device: as ComfyUI starts by default, with --gpu-only, without dynamic VRAM."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from ..comfy_server import ComfyServer
from ..comfyui import write_example_images, write_tiny_models
from ..graphs import load
from .measuring import Section

GRAPHS = (
    "mulan_text_to_image",
    "visionllm_detect",
    "visionllm_keypoints",
    "visionllm_segment",
    "visionllm_region",
    "visionllm_describe",
    "internvl_label_folder",
    "internvl_chat",
    "mulan_language_grid",
)
FEW = 3  # of them, with flags and in a quick run
FLAGS = ((), ("--gpu-only",), ("--disable-dynamic-vram",))
STEPS = 4


class FlaggedServer(ComfyServer):
    """A server with further arguments; where the carried ComfyUI lacks the editor, an empty page stands for it."""

    def __init__(self, comfyui: Path, flags: tuple[str, ...], *, cpu: bool, log: Path):
        super().__init__(comfyui, cpu=cpu, start_within=150, log=log)
        self._flags = flags
        empty = comfyui / "empty_web"
        self._web = ["--front-end-root", str(empty)] if empty.is_dir() else []

    def _command(self) -> list[str]:
        return [*super()._command(), *self._flags, *self._web]


def graphs(section: Section) -> None:
    write_tiny_models(section.comfyui / "models")
    write_example_images(section.comfyui / "input")
    for flags in FLAGS[:1] if section.on_cpu or section.quick else FLAGS:
        title = " ".join(flags)
        log = section.out / f"server{''.join(flags)}.log"
        server = FlaggedServer(section.comfyui, flags, cpu=section.on_cpu, log=log)
        if not section.case(f"start {title}", lambda server=server: _timed(server.start)):
            continue
        try:
            _copy_inputs(section.comfyui / "input", Path(server.folder) / "input")
            for name in GRAPHS[:FEW] if section.quick or flags else GRAPHS:
                graph = _with_few_steps(load(name))
                section.case(f"{name} {title}", lambda server=server, graph=graph: _timed(lambda: server.run(graph)))
        finally:
            server.stop()


def _timed(work) -> dict[str, float]:
    start = time.monotonic()
    work()
    return {"s": time.monotonic() - start}


def _copy_inputs(source: Path, target: Path) -> None:
    for entry in source.iterdir():
        copy = target / entry.name
        if not copy.exists():
            (shutil.copytree if entry.is_dir() else shutil.copy)(entry, copy)


def _with_few_steps(graph: dict) -> dict:
    for node in graph.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = min(STEPS, node["inputs"]["steps"])
    return graph
