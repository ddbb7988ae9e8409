"""Check Images through the queue: with the tiny models, with boxes of any detector, and what is refused."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import GraphFailed, GraphRejected, decode
from mulan_nodes.tools.tinyworld.world import Thing, read
from mulan_nodes.tools.tinyworld_visionllm import scenes

WIDTH, HEIGHT = 96, 64
WANTED = [Thing("red", "circle", "big"), Thing("red", "circle", "small"), Thing("blue", "star", "big")]
LESS, OTHER = WANTED[1:], [*WANTED[:2], Thing("black", "star", "big")]
CHECKLIST = "red circle: 2\nblue star\nIs there a blue star?\nHow many stars are there? 1"
LISTS = {"scores": 2, "failed": 3, "order": 4}  # name -> output
DEFAULTS = {"threshold": 0.3, "top_k": 1, "grow": 0}


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def check(**inputs) -> dict:
    return node("VisionLLMCheckImages", **DEFAULTS | inputs)


def box(x: int, label: str, score: float = 0.9) -> dict:
    return {"x": x, "y": 10, "width": 20, "height": 20, "label": label, "score": score}


def run(server, graph: dict) -> dict:
    """What the node (5) gives: images, masks, and the lists as texts."""
    lists = {name: node("PreviewAny", source=["5", number]) for name, number in LISTS.items()}
    shown = {
        "images": node("SaveImage", images=["5", 0], filename_prefix="best"),
        "m": node("MaskToImage", mask=["5", 1]),
        "masks": node("SaveImage", images=["m", 0], filename_prefix="mask"),
    }
    outputs = server.run(graph | lists | shown)
    decoded = {name: [decode(data) for data in outputs.files[name]] for name in ("images", "masks")}
    texts = {name: outputs.nodes[name]["text"] for name in LISTS}
    return decoded | texts | {"told": outputs.nodes["5"]["mulan_text"][0], "json": outputs.nodes["5"]["text"][0]}


@pytest.fixture(scope="module")
def pictured(server, tiny_models) -> dict:
    """A batch (2) of three drawn scenes, the second of which is right; the loaded tiny VisionLLM (1)."""
    rng, batch = np.random.default_rng(5), {}
    for number, things in enumerate((LESS, WANTED, OTHER)):
        Image.fromarray(scenes.draw_these(rng, things).picture).save(server.folder / "input" / f"scene_{number}.png")
        batch[f"2{number}"] = node("LoadImage", image=f"scene_{number}.png")
    joined = {f"images.image{number}": [id, 0] for number, id in enumerate(batch)}
    return {"1": node("VisionLLMLoader", checkpoint="tiny_visionllm.safetensors"), **batch} | {
        "2": node("BatchImagesNode", **joined)
    }


def test_the_image_that_shows_everything_is_chosen(server, pictured):
    found = run(
        server, pictured | {"5": check(visionllm=["1", 0], image=["2", 0], checklist=CHECKLIST, top_k=0, grow=1)}
    )
    assert found["order"][0] == "1" and Counter(found["order"]) == Counter("012")
    assert float(found["scores"][0]) == 1 and found["failed"][0] == "" and not found["masks"][0].any()
    failed = dict(zip(found["order"], found["failed"], strict=True))
    assert "red circle: 1, expected 2" in failed["0"] and "blue star: 0, expected 1 or more" in failed["2"]
    assert len(found["images"]) == len(found["masks"]) == 3
    frames = json.loads(found["json"])["frames"]  # in the input's order
    assert [Counter(one["label"] for one in frame["objects"])["red circle"] for frame in frames] == [1, 2, 2]
    assert [frame["text"] for frame in frames] == [failed[key] for key in "012"]
    masks = dict(zip(found["order"], found["masks"], strict=True))
    assert 0.3 < (masks["2"] > 127).mean() < 1  # all but the two circles


def test_the_mask_draws_what_is_wrong_anew_in_the_same_graph(server, tiny_models):
    """MuLan draws a purple square where a black one is wanted; the check sees it, and MuLan draws there anew."""
    graph = graphs.load("mulan_inpaint")
    encoder = graphs.find(graph, "VAEEncodeForInpaint")
    drawn = graph[encoder]["inputs"]["pixels"]
    graph = {key: value for key, value in graph.items() if value["class_type"] not in ("SolidMask", "MaskComposite")}
    graph = graphs.change(graph, "Empty Latent Image", batch_size=2)
    graph |= {
        "40": node("VisionLLMLoader", checkpoint="tiny_visionllm.safetensors"),
        "50": check(visionllm=["40", 0], image=drawn, checklist="purple square: 0\nblack square"),
    }
    graph[encoder]["inputs"] |= {"pixels": ["50", 0], "mask": ["50", 1]}
    outputs = server.run(graph)
    saved = graphs.find(graph, "SaveImage")
    (picture,) = map(decode, outputs.files[saved])
    assert [read(image).colour for image in map(decode, outputs.files[graphs.find(graph, "PreviewImage")])] == [
        "purple"
    ] * 2
    assert read(picture).agrees(Thing("black", "square", "big"))
    assert "purple square: " in outputs.nodes["50"]["mulan_text"][0]


def test_boxes_of_any_detector(server):
    """Two images: in the first a cat too many, in the second a dog is missing, with a place for it."""
    boxes = [[box(0, "cat", 0.5), box(30, "Cat", 0.8), box(60, "dog")], [box(0, "cat")]]
    graph = {"2": node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=2, color=0)}
    inputs = dict(image=["2", 0], bboxes={"__value__": boxes}, checklist="cat: 1\ndog", top_k=0)
    found = run(server, graph | {"5": check(**inputs, places={"__value__": [box(70, "dog")]})})
    assert found["scores"] == ["0.5", "0.5"] and found["failed"] == ["dog: 0, expected 1 or more", "cat: 2, expected 1"]
    first, second = (mask[..., 0] > 127 for mask in found["masks"])
    assert first[10:30, 70:90].all() and first.sum() == 400 and second[10:30, :20].all() and second.sum() == 400
    assert found["order"] == ["1", "0"] and found["told"].startswith("image 2: 0.50\n  dog: 0, expected 1 or more")
    masks = node("SolidMask", value=1.0, width=WIDTH, height=HEIGHT)
    wrong = graph | {"5": check(**inputs, masks=["6", 0]), "6": masks}
    with pytest.raises(GraphFailed, match="masks: there are 1 masks for 4 boxes"):
        server.run(wrong)


def test_internvl_chat_answers_the_questions(server, tiny_models):
    graph = {
        "1": node("InternVLChatLoader", checkpoint="tiny_internvl_chat.safetensors", device="default"),
        "2": node("EmptyImage", width=64, height=64, batch_size=2, color=0xFFFFFF),
        "5": check(image=["2", 0], clip=["1", 0], checklist="What colour is it? red\nIs it night?", top_k=0),
    }
    found = run(server, graph)
    assert len(found["failed"]) == 2 and all("→" in text for text in found["failed"])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"checklist": "a cat\nphoto: a dog"}, "checklist: 'a dog' in the line 'photo: a dog' is no number of objects"),
        ({"checklist": " "}, "checklist: enter what must be in the image"),
        ({"checklist": "a [DET] cat"}, "checklist: "),
    ],
)
def test_a_wrong_checklist_is_refused_before_anything_runs(server, inputs, words):
    graph = {"2": node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=1, color=0)}
    with pytest.raises(GraphRejected) as refused:
        server.run(graph | {"5": check(image=["2", 0], **inputs)})
    assert words in json.dumps(refused.value.node_errors, ensure_ascii=False)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"checklist": "cat"}, "checklist: it names things, such as 'cat'. Connect visionllm, or bboxes"),
        ({"checklist": "Is it night?"}, "checklist: it has questions, such as 'Is it night?'. Connect visionllm, or"),
        ({"checklist": "cat", "bboxes": {"__value__": [[], [], []]}}, "bboxes: there are bounding boxes for 3 images"),
        ({"checklist": "Is it?", "clip": ["1", 1]}, "clip: this CLIP cannot generate text"),
    ],
)
def test_what_is_not_connected_is_named(server, tiny_models, inputs, words):
    graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "2": node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=2, color=0),
        "5": check(image=["2", 0], **inputs),
    }
    with pytest.raises(GraphFailed) as failed:
        server.run(graph)
    assert words in failed.value.message
