"""The models folder of graph tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models(comfyui_folder, tiny_models, tmp_path_factory) -> Path:
    """Files made for these tests (tests/graph/models.py), beside the tiny models in ComfyUI's own folder."""
    from mulan_nodes.tests.graph.models import make_all

    return make_all(tmp_path_factory.mktemp("models"), comfyui_folder / "models")
