"""Write the help pages in web/docs from tools/help_pages and the nodes' schemas."""

import argparse
from pathlib import Path


def run(comfyui: Path, options: argparse.Namespace) -> int:
    from ..comfyui import ROOT, open_comfyui

    open_comfyui("--cpu")
    from .. import help_pages

    for path in help_pages.write():
        print(path.relative_to(ROOT))
    for problem in help_pages.stale():
        print(f"to do: {problem}")
    return 0
