"""Make the environment, fetch ComfyUI, link the pack and write the tiny models (every other command does so too)."""

import argparse
import sys
from pathlib import Path

NEEDS_TINY_MODELS = True


def run(comfyui: Path, options: argparse.Namespace) -> int:
    print(f"Ready: ComfyUI in {comfyui}, the environment in {sys.prefix}.")
    return 0
