"""The tiny SDXL through a real server: it draws what is asked for."""

from __future__ import annotations

import pytest

from mulan_nodes.tools import graphs
from mulan_nodes.tools.evaluate import mulan as evaluate_mulan
from mulan_nodes.tools.evaluate.cases import MULAN, TinyWorldReader, tiny_world_cases, tiny_world_draws
from mulan_nodes.tools.tinyworld import sdxl

PICTURES, STEPS, LEAST = 2, 10, 0.8
LANGUAGES = ("en", "zh", "hi", "ar")


@pytest.fixture(scope="module")
def graph(comfyui_folder) -> dict:
    sdxl.write_models(comfyui_folder / "models")
    return graphs.change(sdxl.graph(graphs.load(evaluate_mulan.GRAPH)), "KSampler", steps=STEPS)


def test_it_draws_what_is_said_in_every_script(server, graph):
    draws = tiny_world_draws(PICTURES, seed=3)
    cases = [case for language in LANGUAGES for case in tiny_world_cases(MULAN, language, draws)]
    right = [result.scores["right"] for result in evaluate_mulan.draw_all(server, cases, TinyWorldReader(), graph)]
    assert sum(right) >= LEAST * len(right), right


def test_sizes_that_it_never_drew_change_nothing_that_was_asked_for(server, graph):
    """CLIPTextEncodeSDXL: any sizes were as good as any in its training."""
    sizes = {"width": 1024, "height": 1024, "crop_w": 0, "crop_h": 0, "target_width": 1024, "target_height": 1024}
    right = []
    for case in tiny_world_cases(MULAN, "zh", tiny_world_draws(4, seed=4)):
        node = {"clip": ["2", 1], "text_g": case.prompt, "text_l": case.prompt, **sizes}
        sized = {**graph, "30": {"class_type": "CLIPTextEncodeSDXL", "inputs": node}}
        sized = graphs.change(sized, "KSampler", positive=["30", 0], seed=case.seed)
        right.append(TinyWorldReader()(graphs.picture(server, sized), case)["right"])
    assert sum(right) >= 3, right
