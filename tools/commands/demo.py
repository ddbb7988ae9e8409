"""Draw eight things in 110 languages and six shapes in twelve through a real ComfyUI server: sheets and scores in
output/.
"""

import argparse
from pathlib import Path

NEEDS_TINY_MODELS = True


def run(comfyui: Path, options: argparse.Namespace) -> int:
    from ..comfyui import OUTPUT, has_accelerator
    from ..evaluate import languages, mulan

    cpu = not has_accelerator()
    right = [mulan.demo(comfyui, cpu, OUTPUT), languages.demo(comfyui, cpu, OUTPUT)]
    return 0 if all(right) else 1
