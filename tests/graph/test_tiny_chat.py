"""The tiny InternVL that talks, through the queue: our node and core's Generate Text tell what is in a picture, a talk
goes on, and what is asked for is found.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mulan_nodes.tools.tinyworld import pointing, world
from mulan_nodes.tools.tinyworld.talks import QUESTIONS
from mulan_nodes.tools.tinyworld_visionllm.evaluation import FOUND, overlaps

CHECKPOINT = "tiny_internvl_chat.safetensors"
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
        "1": node("InternVLChatLoader", checkpoint=CHECKPOINT),
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


def test_it_finds_what_twelve_languages_name(server):
    """Two things in each, in images with others; a model that guesses finds none or one of the 24."""
    rng, graph, truth = np.random.default_rng(6), {"1": node("InternVLChatLoader", checkpoint=CHECKPOINT)}, {}
    for number in range(2 * len(QUESTIONS)):
        while not (asked := pointing.find(shown := pointing.show(rng), list(QUESTIONS)[number // 2], rng)):
            pass
        exchange, place = asked
        phrase = exchange.answer.split("</ref>")[0].removeprefix("<ref>")
        Image.fromarray(shown.picture).save(Path(server.folder, "input", f"scene_{number}.png"))
        graph |= {
            f"{number}.image": node("LoadImage", image=f"scene_{number}.png"),
            f"{number}.found": ask(phrase, f"{number}.image", task="find"),
            f"{number}.boxes": node("VisionLLMTextToBoxes", text=[f"{number}.found", 0], image=[f"{number}.image", 0],
                                    coordinates="auto"),
            f"{number}.told": node("PreviewAny", source=[f"{number}.boxes", 0]),
        }  # fmt: skip
        truth[f"{number}.told"] = shown.boxes[place] * world.PICTURE_SIZE
    outputs = server.run(graph)
    overlapping = [_overlap(json.loads(outputs.nodes[id]["text"][0]), box) for id, box in truth.items()]
    assert np.mean(np.array(overlapping) >= FOUND) >= 0.75, overlapping


def _overlap(told: list[list[dict]], box: np.ndarray) -> float:
    """How far the one box that was told overlaps with this one, pixels; 0 where there is none or another."""
    if [len(of_image) for of_image in told] != [1]:
        return 0.0
    x, y, width, height = (told[0][0][side] for side in ("x", "y", "width", "height"))
    return overlaps(np.array([[x, y, x + width, y + height]]), box[None]).item()
