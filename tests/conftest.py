"""Fixtures of all tests: ComfyUI's folder, one running server, the tiny models."""

import datetime
from pathlib import Path

import pytest

from mulan_nodes.tools import comfyui

TESTS = Path(__file__).resolve().parent


def pytest_addoption(parser):
    parser.addoption("--goldens", type=Path, metavar="DIR", help="upstream's numbers (default: tests/parity/goldens)")
    parser.addoption(
        "--manifests",
        type=Path,
        metavar="DIR",
        help="names and shapes of full-size models (default: `manifests` beside the goldens, else tests/parity's)",
    )
    parser.addoption(
        "--day",
        type=datetime.date.fromisoformat,
        default=datetime.datetime.now(datetime.timezone.utc).date(),
        metavar="YYYY-MM-DD",
        help="the day whose sample of languages is drawn (default: today)",
    )


def pytest_configure(config):
    comfyui.open_comfyui("--cpu")


@pytest.fixture(scope="session")
def comfyui_folder() -> Path:
    """ComfyUI's folder."""
    return comfyui.folder()


@pytest.fixture(scope="session")
def models(comfyui_folder, tiny_models, tmp_path_factory) -> Path:
    """A folder with the layout of models/ that the server searches beside ComfyUI's own, which has the tiny models: it
    holds files made for tests of graphs (tests/graph/models.py), and what tests write there, the server lists.
    """
    from mulan_nodes.tests.graph.models import make_all

    return make_all(tmp_path_factory.mktemp("models"), comfyui_folder / "models")


@pytest.fixture(scope="session")
def server(comfyui_folder, models):
    """One real ComfyUI server, on the CPU, for all tests of a run."""
    from mulan_nodes.tools.comfy_server import ComfyServer

    with ComfyServer(comfyui_folder, extra_models=models, extra_nodes=TESTS / "custom_nodes") as running:
        yield running


@pytest.fixture(scope="session")
def tiny_models(comfyui_folder) -> dict[str, Path]:
    """The tiny models in ComfyUI's models folder, by file name."""
    return {file.name: file for file in comfyui.write_tiny_models(comfyui_folder / "models")}


@pytest.fixture
def dev():
    """dev.py as a module."""
    from mulan_nodes import dev

    return dev
