"""Open and run every template in a browser, in four kinds of editor: table and screenshots in output/templates."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these templates (default: all)")
    parser.add_argument("--arrange", action="store_true", help="first lay them out anew by what their nodes need")
    parser.add_argument("--no-run", action="store_true", help="only open them")
    parser.add_argument("--api", action="store_true", help="only write workflows/api and the pack's version anew")
    parser.add_argument(
        "--frontend",
        nargs="*",
        default=[],
        metavar="VERSION",
        help="other versions of comfyui-frontend-package to try beside the one that is installed",
    )
    parser.add_argument("--browser", type=Path, metavar="FILE", help="a Chromium (default: the one on PATH)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(default: output/templates)")


def run(comfyui: Path, options: argparse.Namespace) -> int:
    if options.api:
        from ..api_form import write_all

        write_all(comfyui)
        return 0
    from ..browser import campaign
    from ..comfyui import OUTPUT

    return campaign.run(comfyui, options, options.out or OUTPUT / "templates")
