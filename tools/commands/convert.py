"""Convert a published checkpoint to .safetensors for ComfyUI; --help shows its own arguments."""

import argparse
from pathlib import Path

FORWARDS = True


def run(comfyui: Path, options: argparse.Namespace) -> int:
    from ...mulan.conversion.__main__ import main

    return main(options.rest)
