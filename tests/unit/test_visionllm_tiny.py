"""The tiny VisionLLM sees: its scores on held-out pictures, asked as the nodes ask. `dev.py eval` measures more of them."""
from __future__ import annotations

import pytest

from pack.visionllm_nodes.model.loading import load_visionllm
from pack.visionllm_nodes.tinyworld.examination import GOALS, examine, held_out_scenes

SCENES = 30
MARGIN = 0.05  # of chance: so few pictures scatter about the figures of `dev.py eval`


@pytest.fixture(scope="module")
def scores(tiny_models):
    return examine(load_visionllm(tiny_models["tiny_visionllm.safetensors"]), held_out_scenes(SCENES)).scores


@pytest.mark.parametrize("name", GOALS)
def test_it_reaches_its_goal(name, scores):
    assert scores[name] >= GOALS[name] - MARGIN, scores
