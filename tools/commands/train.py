"""Train a MuLan adapter for a base model of yours; --help shows its own arguments."""

import argparse
from pathlib import Path

FORWARDS = True


def run(comfyui: Path, options: argparse.Namespace) -> int:
    from ...mulan.training.__main__ import main

    return main(options.rest)
