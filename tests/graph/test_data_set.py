"""A data set of a folder from one graph, on the tiny models: captions, tags, boxes, duplicates."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from mulan_nodes.tools.comfy_server import GraphRejected
from mulan_nodes.tools.tinyworld.world import Thing, draw


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def save_captions(captions: list, language: str) -> dict:
    return node("InternVLSaveCaptions", captions=captions, names=["2", 1], folder=["2", 2], language=language)


def test_a_data_set_is_made_in_one_graph(server, tiny_models):
    """Captions in two languages, tags, boxes and duplicates of one folder, whose names and order stay; then it is
    continued where only one language is there.
    """
    folder = server.folder / "input" / "data set"
    folder.mkdir()
    rng = np.random.default_rng(3)
    drawn = {"10.png": Thing("red", "circle", "big"), "2.jpg": Thing("blue", "star", "big")}
    for name, thing in drawn.items():
        Image.fromarray(draw(thing, rng)).save(folder / name, quality=100)
    Image.open(folder / "10.png").save(folder / "copy.png")
    chat_clip = ["1", 0]
    graph = {
        "1": node("InternVLChatLoader", checkpoint="tiny_internvl_chat.safetensors", device="default"),
        "2": node("InternVLImagesToCaption", folder="data set", only_new=True, limit=10, languages="de, tags"),
        "8": node("VisionLLMLoader", checkpoint="tiny_visionllm.safetensors"),
        "9": node(
            "InternVLLoader",
            checkpoint="tiny_internvl_vision.safetensors",
            text_encoder="tiny_internvl.safetensors",
            mode="C",
        ),
        "20": node("VisionLLMDetect", visionllm=["8", 0], image=["2", 0], names="star", threshold=0.0, top_k=1),
        "21": node("VisionLLMSaveDetections", json=["20", 4], filename_prefix=["2", 1]),
        "30": node("InternVLEmbed", internvl=["9", 0], folder=["2", 2]),
        "31": node("InternVLCompare", a=["30", 0], pairs=1),
        "40": node(
            "InternVLZeroShotClassify",
            internvl=["9", 0],
            image=["2", 0],
            labels="a red circle\na blue star\na green square",
            scores="independent",
            threshold=0.4,
        ),
    }
    for number, (language, question) in enumerate((("", "What colour is it?"), ("de", "Welche Farbe hat es?"))):
        graph |= {
            f"5{number}": node("InternVLChat", clip=chat_clip, question=question, **{"images.image_1": ["2", 0]}),
            f"6{number}": save_captions([f"5{number}", 0], language),
        }
    graph["70"] = save_captions(["40", 2], "tags")
    before = {*server.folder.rglob("detections/*.json")}  # of other tests
    outputs = server.run(graph)
    texts = {file.name: file.read_text("utf-8").strip() for file in folder.glob("*.txt")}
    assert texts.keys() == {f"{stem}{code}.txt" for stem in ("2", "10", "copy") for code in ("", ".de", ".tags")}
    assert texts["10.tags.txt"] == texts["copy.tags.txt"] == "a red circle" and texts["2.tags.txt"] == "a blue star"
    assert texts["10.txt"] == texts["copy.txt"] != texts["2.txt"] and texts["2.de.txt"] != texts["10.de.txt"]
    assert outputs.nodes["31"]["mulan_text"][0].endswith("10.png - copy.png")
    saved = {
        file.name: json.loads(file.read_text("utf-8")) for file in {*server.folder.rglob("detections/*.json")} - before
    }
    found = {name.split("_")[0]: len(record["frames"][0]["objects"]) for name, record in saved.items()}
    assert found == dict.fromkeys(("2.jpg", "10.png", "copy.png"), 1)
    (folder / "2.de.txt").unlink()
    again = server.run(graph)
    assert "1 of 3 images" in again.nodes["2"]["mulan_text"][0]
    assert (folder / "2.de.txt").read_text("utf-8").strip() == texts["2.de.txt"]


@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [
        ("InternVLSaveCaptions", {"language": "../de"}, "language: '../de' is not the code of a language"),
        ("InternVLImagesToCaption", {"languages": "de, a b", "only_new": True, "limit": 1}, "languages: 'a b' is not"),
    ],
)
def test_what_is_no_language_is_refused_before_the_run(server, kind, inputs, words):
    (server.folder / "input" / "one").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(server.folder / "input" / "one" / "a.png")
    texts = {"captions": ["5", 0], "names": ["5", 0]} if kind == "InternVLSaveCaptions" else {}
    graph = {"5": node("PrimitiveString", value="a.png"), "4": node(kind, folder="one", **texts, **inputs)}
    graph["6"] = node("PreviewAny", source=["4", 0])
    with pytest.raises(GraphRejected, match=re.escape(words)):
        server.run(graph)
