"""Draw six prompts in twelve languages through a real ComfyUI server: contact sheet and table of scores in output/."""

import argparse
from pathlib import Path

NEEDS_TINY_MODELS = True


def run(comfyui: Path, options: argparse.Namespace) -> int:
    from .. import evaluate_mulan
    from ..comfyui import OUTPUT, has_accelerator

    return 0 if evaluate_mulan.demo(comfyui, not has_accelerator(), OUTPUT) else 1
