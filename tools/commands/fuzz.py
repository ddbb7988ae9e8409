"""Send malformed and extreme inputs to every node, and tell what the server answers: output/fuzz."""

import argparse
from pathlib import Path

NEEDS_TINY_MODELS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=int, default=1000, metavar="N", help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="only these kinds of cases")
    parser.add_argument("--nodes", nargs="+", metavar="NODE", help="only these nodes")
    parser.add_argument("--ids", nargs="+", metavar="ID", help="these cases alone")
    parser.add_argument("--ids-file", type=Path, metavar="FILE", help="the cases in this file, one a line")
    parser.add_argument("--replay", type=Path, metavar="DIR", help="the graphs in this folder instead")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(default: output/fuzz)")


def run(comfyui: Path, options: argparse.Namespace) -> int:
    from ..comfyui import OUTPUT
    from ..fuzz import campaign

    return campaign.run(comfyui, options, options.out or OUTPUT / "fuzz")
