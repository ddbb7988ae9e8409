"""Prompts as people and other programs write them, through the queue: what they draw, and how refusals read."""

from __future__ import annotations

import numpy as np
import pytest

from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import GraphFailed
from mulan_nodes.tools.graphs import picture


@pytest.fixture(scope="module")
def base() -> dict:
    return graphs.change(graphs.load("mulan_text_to_image"), "KSampler", steps=2)


@pytest.fixture(scope="module")
def draw(server, base):
    """draw(prompt, negative) -> the image."""

    def drawn(prompt: str, negative: str = "") -> np.ndarray:
        graph = graphs.change(graphs.change(base, "Prompt", text=prompt), "Negative prompt", text=negative)
        return picture(server, graph)

    return drawn


@pytest.fixture(scope="module")
def circle(draw) -> np.ndarray:
    return draw("一个红色的圆形")


@pytest.mark.parametrize("negative", [" ", "\n", "\t", "\u3000", "\u00a0", "\u200b", "\ufeff"])
def test_a_negative_of_white_space_is_empty(draw, circle, negative):
    assert np.array_equal(draw("一个红色的圆形", negative), circle)


@pytest.mark.parametrize(
    "prompt", ["一个红色的圆形\n\n", "一个红色的\n圆形", "\ufeff\u3000一个红色的圆形", "embedding:名 一个红色的圆形"]
)
def test_white_space_that_says_nothing_draws_nothing_else(draw, circle, prompt):
    assert np.array_equal(draw(prompt), circle)


def test_a_full_width_comma_ends_the_name_of_a_textual_inversion(draw, circle):
    image = draw("embedding:名，一个红色的圆形")
    assert np.array_equal(image, draw("，一个红色的圆形")) and not np.array_equal(image, draw(""))


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("a" * (2**20 + 1), "the prompt is 1048577 characters long, and at most 1048576 are read"),
        ("x" * 2**20, "tokens or more, and at most 150000 are read"),
        ("BREAK a " * 2100, "at most 2048 are encoded"),
    ],
    ids=("characters", "tokens", "windows"),
)
def test_a_prompt_past_the_limits_is_refused_in_a_sentence(draw, circle, prompt, message):
    with pytest.raises(GraphFailed, match=message):
        draw(prompt)
    assert np.array_equal(draw("一个红色的圆形 "), circle)


def test_too_many_prompts_in_a_list_are_refused(server, base):
    graph = graphs.add(
        base,
        ("20", "PrimitiveStringMultiline", {"value": "\n".join(map(str, range(10_001)))}),
        ("21", "MuLanEncodeLanguages", {"clip": ["2", 1], "prompts": ["20", 0]}),
    )
    graph = graphs.change(graph, "KSampler", positive=["21", 0])
    with pytest.raises(GraphFailed, match="prompts: there are 10001 prompts, and at most 10000 are encoded at once"):
        server.run(graph)
