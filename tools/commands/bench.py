"""Measure this pack beside mulankit: output/bench.md; --help shows its own arguments, --gpu measures a GPU."""

import argparse
import importlib
from pathlib import Path

FORWARDS = True
NEEDS_TINY_MODELS = True


def run(comfyui: Path, options: argparse.Namespace) -> int:
    from ..comfyui import CACHE, OUTPUT

    name = next((other for other in ("visionllm", "internvl", "encoders") if f"--{other}" in options.rest), None)
    module = importlib.import_module(f"mulan_nodes.tools.bench.{name or 'run'}")
    return module.main(
        [argument for argument in options.rest if argument != f"--{name}"], comfyui, CACHE / "bench", OUTPUT
    )
