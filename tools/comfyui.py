"""ComfyUI and the tiny models for a plain Python process.

dev.py's environment finds both the repository (as the package `mulan_nodes`) and ComfyUI; what is left is ComfyUI's
command line.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
OUTPUT = ROOT / "output"


def open_comfyui(*arguments: str) -> None:
    """Let ComfyUI read `arguments` (such as "--cpu") as its command line. Call it before anything imports
    comfy.cli_args.
    """
    import comfy.options

    comfy.options.enable_args_parsing()
    own, sys.argv = sys.argv, ["comfyui", *arguments]
    try:
        import comfy.cli_args  # noqa: F401  (reads sys.argv when it is imported)
    finally:
        sys.argv = own


def folder() -> Path:
    """ComfyUI's folder, the one this environment imports from."""
    import comfyui_version

    return Path(comfyui_version.__file__).resolve().parent


def device_arguments() -> list[str]:
    """ComfyUI's arguments for this machine: ["--cpu"] without an accelerator."""
    return [] if has_accelerator() else ["--cpu"]


def has_accelerator() -> bool:
    """Whether torch finds a CUDA, XPU or MPS device."""
    import torch

    return torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available()


def write_tiny_models(models: Path) -> list[Path]:
    """Write all tiny models below a ComfyUI's models folder; return their files."""
    from mulan_nodes.mulan.boundary.interrupts import uninterrupted
    from mulan_nodes.mulan.tiny_models.unpacking import TINY_MODELS, write_tiny_models

    paths = {model: models / model.folder / model.name for model in TINY_MODELS}
    with uninterrupted():  # nobody presses Stop here, and ComfyUI has not read its command line yet
        write_tiny_models(paths)
    return list(paths.values())


def write_example_images(inputs: Path) -> list[Path]:
    """Write the folder of images that templates read below a ComfyUI's input folder; return its files."""
    from .tinyworld import example_pictures

    return example_pictures.write(inputs / example_pictures.FOLDER)


def refresh_tiny_models(comfyui: Path) -> None:
    """Write the tiny models and the templates' images into a ComfyUI, unless they are there already."""
    write_tiny_models(comfyui / "models")
    write_example_images(comfyui / "input")
