"""The models folder of graph tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models(host, tiny_models, tmp_path_factory) -> Path:
    """Files made for these tests (tests/graph/models.py), beside the tiny models in the host's own folder."""
    spec = importlib.util.spec_from_file_location("graph_models", Path(__file__).with_name("models.py"))
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    return maker.make_all(tmp_path_factory.mktemp("models"), host / "models")
