"""ComfyUI with what the registry ships, and nothing else: no models, no repository, no network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mulan_nodes.tests.hygiene.tree import build_shipped

EMPTY = {"custom_nodes", "input", "models", "output", "temp", "user"}
NOWHERE = "http://127.0.0.1:9"  # a proxy that is not there
ENVIRONMENT = {
    "PYTHONPATH": "",
    "PYTHONPROFILEIMPORTTIME": "1",  # the log names every module that is imported
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE),
}


@pytest.fixture(scope="session")
def installed(comfyui_folder, tmp_path_factory) -> Path:
    """A fresh ComfyUI with custom_nodes/mulan-nodes, as ComfyUI Manager makes it."""
    folder = tmp_path_factory.mktemp("installed") / "ComfyUI"
    folder.mkdir()
    for entry in comfyui_folder.iterdir():
        if entry.name in EMPTY:
            (folder / entry.name).mkdir()
        elif entry.is_dir():
            shutil.copytree(entry, folder / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(entry, folder)
    build_shipped(folder)
    return folder


@pytest.fixture(scope="session")
def server(installed):
    """The server of that ComfyUI."""
    from mulan_nodes.tools.comfy_server import ComfyServer

    with ComfyServer(installed, environment=ENVIRONMENT) as running:
        yield running
