"""Draw eight things in 110 languages and six shapes in twelve through a real ComfyUI server: sheets and scores in
output/.
"""

import argparse
from pathlib import Path

NEEDS_TINY_MODELS = True


def run(comfyui: Path, options: argparse.Namespace) -> int:
    from .. import evaluate_languages, evaluate_mulan
    from ..comfyui import OUTPUT, has_accelerator

    cpu = not has_accelerator()
    right = [evaluate_mulan.demo(comfyui, cpu, OUTPUT), evaluate_languages.demo(comfyui, cpu, OUTPUT)]
    return 0 if all(right) else 1
