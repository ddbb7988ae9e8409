"""What every test may lean on: the library under its own name, the host's code, one running server."""
import importlib.util
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))

import library  # noqa: E402

library.load_library()


def pytest_addoption(parser):
    parser.addoption("--comfyui", type=Path, default=TESTS.parent / ".comfyui", metavar="DIR", help="ComfyUI's folder")
    parser.addoption("--goldens", type=Path, default=None, metavar="DIR", help="upstream's numbers (default: tests/parity/goldens)")


def pytest_configure(config):
    host = config.getoption("--comfyui").resolve()
    if not (host / "main.py").is_file():
        raise pytest.UsageError(f"there is no ComfyUI in {host}: run the tests with python dev.py test")
    library.open_host(host, "--cpu")


@pytest.fixture(scope="session")
def host(request) -> Path:
    return request.config.getoption("--comfyui").resolve()


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with the layout of models/ that the server searches too: what tests write there, it lists."""
    import comfy_server

    folder = tmp_path_factory.mktemp("models")
    for name in comfy_server.MODEL_FOLDERS:
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="session")
def server(host, models):
    """One real ComfyUI server, on the CPU, for all tests of a run."""
    from comfy_server import ComfyServer

    with ComfyServer(host, extra_models=models, extra_nodes=TESTS / "custom_nodes") as running:
        yield running


@pytest.fixture(scope="session")
def tiny_models(host) -> dict[str, Path]:
    """The tiny models in the host's models folder, by file name."""
    return {file.name: file for file in library.write_tiny_models(host / "models")}


@pytest.fixture
def dev():
    """dev.py as a module."""
    spec = importlib.util.spec_from_file_location("dev", TESTS.parent / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
