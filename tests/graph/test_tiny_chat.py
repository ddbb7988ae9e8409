"""The tiny InternVL that talks, through the queue: our node and core's Generate Text tell what is in a picture, and a
talk goes on.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mulan_nodes.tools.tinyworld import world

THINGS = {"first.png": world.Thing("purple", "triangle", "big"), "second.png": world.Thing("yellow", "star", "small")}


@pytest.fixture(scope="module", autouse=True)
def pictures(server):
    rng = np.random.default_rng(4)
    for name, thing in THINGS.items():
        Image.fromarray(world.draw(thing, rng)).save(Path(server.folder, "input", name))


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(**asking) -> dict:
    """Loader 1, the pictures 2 and 3, and what asks."""
    first, second = THINGS
    return {
        "1": node("InternVLChatLoader", checkpoint="tiny_internvl_chat.safetensors"),
        "2": node("LoadImage", image=first),
        "3": node("LoadImage", image=second),
        **asking,
    }


def ask(question: str, *images: str, **more) -> dict:
    shown = {f"images.image_{number}": [id, 0] for number, id in enumerate(images, 1)}
    return node("InternVLChat", clip=["1", 0], question=question, **shown, **more)


def said(outputs, id: str) -> str:
    return json.loads(outputs.nodes[id]["text"][0])["text"]


def test_it_describes_in_the_language_of_the_question(server):
    outputs = server.run(
        graph(en=ask("Describe the picture.", "2"), de=ask("Was ist auf dem Bild?", "2"), zh=ask("描述这张图片。", "3"))
    )
    assert (said(outputs, "en"), said(outputs, "de"), said(outputs, "zh")) == (
        "a big purple triangle",
        "ein großes violettes Dreieck",
        "一个黄色的小五角星",
    )


def test_a_talk_goes_on_from_node_to_node(server):
    asked = {"b": ask("And its colour?", "3", history=["a", 1]), "c": ask("And its size?", "3", history=["b", 1])}
    outputs = server.run(graph(a=ask("What shape is it?", "3"), **asked))
    assert [said(outputs, id) for id in "abc"] == ["star", "yellow", "small"]


def test_cores_node_asks_it(server):
    asked = node(
        "TextGenerate", clip=["1", 0], prompt="What do you see?", image=["3", 0], max_length=32, sampling_mode="off"
    )
    assert (
        server.run(graph(a=asked, b=node("PreviewAny", source=["a", 0]))).nodes["b"]["text"][0] == "a small yellow star"
    )
