"""dev.py's commands, inside its environment: `python tools <command> --comfyui DIR ...`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path

from mulan_nodes.tools.comfyui import refresh_tiny_models


def main(arguments: list[str]) -> int:
    name = arguments[0]
    command = importlib.import_module(f"mulan_nodes.tools.commands.{name.replace('-', '_')}")
    forwards, about = getattr(command, "FORWARDS", False), (command.__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        prog=f"dev.py {name}", description=about, add_help=not forwards, allow_abbrev=False
    )
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="a ComfyUI that you have (default: one of our own)")
    getattr(command, "add_arguments", lambda _: None)(parser)
    options, rest = parser.parse_known_args(arguments[1:])
    if rest and not forwards:
        parser.error("unrecognised arguments: " + " ".join(rest))
    options.rest = rest
    if getattr(command, "NEEDS_TINY_MODELS", False):
        refresh_tiny_models(options.comfyui)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # leave through every `finally`, as on Ctrl-C: no server stays behind
    return command.run(options.comfyui, options)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("\nstopped")
