"""VisionLLM Ask about marked shapes, through the queue with the tiny model: its answers are those of the drawing.

The shares asked for are below those of web/docs/measured.md, since these are few questions.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mulan_nodes.tools.tinyworld_visionllm import scenes
from mulan_nodes.tools.tinyworld_visionllm.descriptions import CLEARLY
from mulan_nodes.tools.tinyworld_visionllm.evaluation import FOUND, exact_match, overlaps
from mulan_nodes.tools.tinyworld_visionllm.region_questions import draw_scene_of_likes

COUNT = 16
SHARE = 0.85


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def ask(question: str, **inputs) -> dict:
    return node(
        "VisionLLMAsk", visionllm=["1", 0], question=question, **{"images.image_1": ["2", 0], "max_tokens": 8} | inputs
    )


@pytest.fixture(scope="module")
def drawn() -> list[scenes.Scene]:
    """Scenes of two to five shapes; region1 is the first, region2 the second."""
    rng = np.random.default_rng(41)
    return [draw_scene_of_likes(rng, scenes.SEEN) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def pictured(server, tiny_models, drawn) -> dict:
    """The tiny VisionLLM (1), the scenes as a batch (2), masks of all first shapes as a batch (3)."""
    graph = {"1": node("VisionLLMLoader", checkpoint="tiny_visionllm.safetensors")}
    for id, name, pixels in (
        ("2", "scene", [scene.picture for scene in drawn]),
        ("30", "first", [np.uint8(255) * scene.items[0].mask for scene in drawn]),
    ):
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(server.folder / "input" / f"{name}_of_regions_{number}.png")
            graph[f"{id}00{number}"] = node("LoadImage", image=f"{name}_of_regions_{number}.png")
        joined = {f"images.image{number}": [f"{id}00{number}", 0] for number in range(len(pixels))}
        graph[id] = node("BatchImagesNode", **joined)
    return graph | {"3": node("ImageToMask", image=["30", 0], channel="red")}


def answers(server, graph: dict, *asked: str) -> list[list[str]]:
    """The texts of these Ask nodes, one per image."""
    shown = {f"text {id}": node("PreviewAny", source=[id, 0]) for id in asked}
    outputs = server.run(graph | shown)
    return [outputs.nodes[f"text {id}"]["text"] for id in asked]


def boxes_of(scene: scenes.Scene) -> list[dict]:
    return [
        {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        for x1, y1, x2, y2 in (item.box.tolist() for item in scene.items[:2])
    ]


def truth(scene: scenes.Scene) -> dict[str, str]:
    one, other = (item.thing for item in scene.items[:2])
    return {
        "What color is region1?": one.colour,
        "What shape is region2?": other.shape,
        "Is region2 big or small?": other.size,
        "Is region1 red?": "yes" if one.colour == "red" else "no",
        "Are region1 and region2 the same color?": "yes" if one.colour == other.colour else "no",
        "Do region2 and region1 have the same shape?": "yes" if one.shape == other.shape else "no",
    }


def test_each_of_two_boxes_is_asked_about(server, pictured, drawn):
    boxes = {"__value__": [boxes_of(scene) for scene in drawn]}
    asked = {f"5{number}": ask(question, bboxes=boxes) for number, question in enumerate(truth(drawn[0]))}
    said = answers(server, pictured | asked, *asked)
    for question, texts in zip(truth(drawn[0]), said, strict=True):
        right = [exact_match(text, truth(scene)[question]) for text, scene in zip(texts, drawn, strict=True)]
        assert len(right) == COUNT and np.mean(right) >= SHARE, (question, texts)


# The axis, the question, and the answer where region1 has the smaller place along it and where region2 has.
PLACES = (
    ("x", "Is region1 left of region2?", "yes", "no"),
    ("x", "Is region1 right of region2?", "no", "yes"),
    ("x", "Which is further left, region1 or region2?", "region1", "region2"),
    ("x", "Which one is further right: region2 or region1?", "region2", "region1"),
    ("y", "Is region2 above region1?", "no", "yes"),
    ("y", "Is region1 below region2?", "no", "yes"),
    ("y", "Which one is higher: region2 or region1?", "region1", "region2"),
    ("y", "Which is lower, region1 or region2?", "region2", "region1"),
)


def places(scene: scenes.Scene) -> dict[str, str]:
    """Of two that are not clearly apart along an axis, nothing is asked about it."""
    apart = {axis: getattr(scene.items[1], axis) - getattr(scene.items[0], axis) for axis in "xy"}
    return {
        question: first if apart[axis] > 0 else second
        for axis, question, first, second in PLACES
        if abs(apart[axis]) >= CLEARLY
    }


def test_where_one_of_two_boxes_is_from_the_other(server, pictured, drawn):
    boxes = {"__value__": [boxes_of(scene) for scene in drawn]}
    questions = list({question: None for scene in drawn for question in places(scene)})
    asked = {f"5{number}": ask(question, bboxes=boxes) for number, question in enumerate(questions)}
    said = answers(server, pictured | asked, *asked)
    assert len(questions) == 8
    for question, texts in zip(questions, said, strict=True):
        truths = [places(scene).get(question) for scene in drawn]
        right = [exact_match(text, truth) for text, truth in zip(texts, truths, strict=True) if truth]
        assert len(right) >= COUNT / 2 and np.mean(right) >= SHARE, (question, texts)


def test_masks_of_a_batch_are_asked_about(server, pictured, drawn):
    questions = {"5": "What color is region1?", "6": "What shape is region1?"}
    asked = {id: ask(question, mask=["3", 0]) for id, question in questions.items()}
    colours, shapes = answers(server, pictured | asked, *asked)
    things = [scene.items[0].thing for scene in drawn]
    assert np.mean([exact_match(said, thing.colour) for said, thing in zip(colours, things, strict=True)]) >= SHARE
    assert np.mean([exact_match(said, thing.shape) for said, thing in zip(shapes, things, strict=True)]) >= SHARE


def test_a_box_node_a_mask_and_points_are_numbered_together(server, pictured):
    """One image: a mask is region1, a box region2, a point region3; the second question continues the first."""
    rng = np.random.default_rng(43)
    things = [scenes.Thing("red", "circle", "big"), scenes.Thing("blue", "star", "small")]
    scene = scenes.draw_these(rng, [*things, scenes.Thing("green", "square", "big")])
    masked, boxed, pointed = scene.items
    for name, pixels in (("mixed", scene.picture), ("mixed_mask", np.uint8(255) * masked.mask)):
        Image.fromarray(pixels).save(server.folder / "input" / f"{name}.png")
    x1, y1, x2, y2 = (round(side) for side in boxed.box.tolist())
    marked = {
        "mask": ["3", 0],
        "bboxes": ["4", 0],
        "points": json.dumps([{"x": round(pointed.x), "y": round(pointed.y)}]),
    }
    graph = {
        "1": pictured["1"],
        "2": node("LoadImage", image="mixed.png"),
        "3": node("LoadImageMask", image="mixed_mask.png", channel="red"),
        "4": node("PrimitiveBoundingBox", x=x1, y=y1, width=x2 - x1, height=y2 - y1),
        **{f"5{number}": ask(f"What color is region{number}?", **marked) for number in (1, 2, 3)},
        "6": ask("And region3?", history=["52", 1], **marked),
    }
    said = [texts[0].strip(" .").lower() for texts in answers(server, graph, "51", "52", "53", "6")]
    assert said == ["red", "blue", "green", "green"]


def test_what_a_box_marks_in_one_image_is_found_in_another(server, tiny_models):
    """VisionLLM Region with `example`: the best box is on a thing of that color and shape, in each of six pairs."""
    rng, graph = np.random.default_rng(44), {"1": node("VisionLLMLoader", checkpoint="tiny_visionllm.safetensors")}
    wanted = {}
    for number in range(6):
        example, marked, scene = scenes.draw_pair(rng)
        for name, one in (("example", example), ("scene", scene)):
            Image.fromarray(one.picture).save(server.folder / "input" / f"{name}_of_pair_{number}.png")
            graph[f"{name} {number}"] = node("LoadImage", image=f"{name}_of_pair_{number}.png")
        x1, y1, x2, y2 = example.items[marked].box.tolist()
        graph[f"find {number}"] = node(
            "VisionLLMRegion",
            **{"visionllm": ["1", 0], "image": [f"scene {number}", 0], "example": [f"example {number}", 0]},
            **{"question": "segment", "threshold": 0.0, "top_k": 1},
            bboxes={"__value__": [{"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}]},
        )
        thing = example.items[marked].thing
        wanted[f"find {number}"] = [
            item.box for item in scene.items if (item.thing.colour, item.thing.shape) == (thing.colour, thing.shape)
        ]
    outputs = server.run(graph)
    for id, boxes in wanted.items():
        ((x, y, width, height),) = (
            one["box"] for one in json.loads(outputs.nodes[id]["text"][0])["frames"][0]["objects"]
        )
        assert overlaps(np.array([[x, y, x + width, y + height]]), np.array(boxes)).max() >= FOUND, id
