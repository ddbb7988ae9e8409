"""The tiny PixArt through a real server: it draws what is asked for."""

from __future__ import annotations

from mulan_nodes.tools import graphs
from mulan_nodes.tools.evaluate import mulan as evaluate_mulan
from mulan_nodes.tools.evaluate.cases import MULAN, TinyWorldReader, tiny_world_cases, tiny_world_draws
from mulan_nodes.tools.tinyworld import pixart

PICTURES, STEPS, LEAST = 4, 10, 0.375  # chance is 0.04
LANGUAGES = ("en", "hi")


def test_it_draws_what_is_said_in_every_script(server, comfyui_folder):
    pixart.write_models(comfyui_folder / "models")
    graph = graphs.change(pixart.graph(graphs.load(evaluate_mulan.GRAPH)), "KSampler", steps=STEPS)
    draws = tiny_world_draws(PICTURES, seed=3)
    cases = [case for language in LANGUAGES for case in tiny_world_cases(MULAN, language, draws)]
    right = [result.scores["right"] for result in evaluate_mulan.draw_all(server, cases, TinyWorldReader(), graph)]
    assert sum(right) >= LEAST * len(right), right
