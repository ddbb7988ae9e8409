"""Other versions of the editor: comfyui-frontend-package from PyPI."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

from ... import dev
from ..comfyui import CACHE

PACKAGE = "comfyui-frontend-package"


def pinned() -> str:
    """Return the version that ComfyUI's requirements pin."""
    return importlib.metadata.version(PACKAGE)


def folder(version: str):
    """Return the files of this version, fetched into .cache; None for the one that is installed."""
    if version == pinned():
        return None
    target = CACHE / f"frontend_{version}"
    static = target / "comfyui_frontend_package" / "static"
    if not (static / "index.html").is_file():
        print(f"fetching {PACKAGE} {version} ...", flush=True)
        command = [dev.uv(), "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
        done = subprocess.run([*command, "--target", str(target), f"{PACKAGE}=={version}"])
        if done.returncode:
            sys.exit(f"{PACKAGE} {version} comes from the Python package index: see above why it did not.")
    return static
