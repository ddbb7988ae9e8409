"""Start ComfyUI and open its editor in the browser."""

import argparse
import socket
import subprocess
import sys
from pathlib import Path

NEEDS_TINY_MODELS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8188)


def run(comfyui: Path, options: argparse.Namespace) -> int:
    from ..comfy_server import server_command
    from ..comfyui import has_accelerator

    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", options.port)) == 0:
            sys.exit(
                f"Port {options.port} is in use, perhaps by another ComfyUI. Choose a free one: python dev.py serve "
                "--port 8200"
            )
    print(
        f"The editor opens at http://127.0.0.1:{options.port} in a moment; MuLan's template is under Templates. "
        "Ctrl-C ends the server.",
        flush=True,
    )
    command = [*server_command(comfyui, options.port, cpu=not has_accelerator()), "--auto-launch"]
    child = subprocess.Popen(command, cwd=comfyui)
    try:
        return child.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        child.terminate()
        child.wait()
