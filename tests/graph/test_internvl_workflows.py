"""What InternVL's templates say of the tiny world is right. test_workflows.py looks at their form."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mulan_nodes.tools import comfyui, graphs
from mulan_nodes.tools.comfy_server import decode
from mulan_nodes.tools.tinyworld import captions, example_pictures, world

COLOUR_AND_SHAPE = frozenset({"colour", "shape"})
THINGS = example_pictures.things()


@pytest.fixture(scope="module", autouse=True)
def pictures(server):
    comfyui.write_example_images(server.folder / "input")


class Ran:
    """A template and what it gave; nodes go by their titles."""

    def __init__(self, server, name: str, **more: dict):
        self.graph = graphs.load(name) | more
        self.outputs = server.run(self.graph)

    def text(self, title: str) -> str:
        (text,) = self.outputs.nodes[graphs.find(self.graph, title)]["text"]
        return text

    def told(self, title: str) -> dict:
        return json.loads(self.text(title))

    def pictures(self, title: str) -> list[np.ndarray]:
        return [decode(file) for file in self.outputs.files[graphs.find(self.graph, title)]]


def named(label: str) -> set[tuple[str, str]]:
    """The colours and shapes that a label of any language stands for."""
    return {
        (thing.colour, thing.shape)
        for words in captions.TRAINED.values()
        for thing in world.THINGS
        if words.noun_phrase(thing, COLOUR_AND_SHAPE).endswith(label)
    }


def best(picture: dict) -> str:
    return picture["labels"][0]["label"]


def test_every_file_of_the_folder_gets_its_label(server):
    ran = Ran(server, "internvl_label_folder")
    told = ran.told("Labels as JSON")
    assert {picture["name"]: named(best(picture)) for picture in told["pictures"]} == {
        name: {(thing.colour, thing.shape)} for name, thing in THINGS.items()
    }
    ranked = [THINGS[picture["name"]] for picture in ran.told("Twelve to look at")["ranked"]]
    shown = [named(best(picture)) for picture in ran.told("Label these")["pictures"]]
    assert shown == [{(thing.colour, thing.shape)} for thing in ranked]
    assert (
        np.mean([thing.size == "big" for thing in ranked[:4]])
        >= 0.75
        > np.mean([thing.size == "big" for thing in ranked])
    )


def test_the_best_of_twelve_is_what_the_sentence_says(server):
    (decoded,) = [id for id, node in graphs.load("internvl_best_of_n").items() if node["class_type"] == "VAEDecode"]
    ran = Ran(
        server,
        "internvl_best_of_n",
        drawn={"class_type": "PreviewImage", "inputs": {"images": [decoded, 0]}, "_meta": {"title": "Drawn"}},
    )
    wanted = world.Thing("blue", "star", "big")
    assert ran.graph[graphs.find(ran.graph, "The sentence (Japanese)")]["inputs"]["value"] == captions.full_caption(
        wanted, "ja"
    )
    readings = [world.read(picture) for picture in ran.pictures("Drawn")]
    order = [picture["position"] for picture in ran.told("All in order")["ranked"]]
    right = [readings[number].agrees(wanted) for number in order]
    assert len(right) == 12 and 2 <= sum(right) <= 9 and all(right[:2]) and not any(right[-2:])
    assert ran.told("The best")["ranked"][0]["position"] == order[0] and readings[order[0]].agrees_strictly(wanted)
    (kept,) = ran.pictures("Keep it")
    small = Image.fromarray(kept).resize((world.PICTURE_SIZE, world.PICTURE_SIZE), Image.Resampling.BOX)
    assert world.read(np.asarray(small)).agrees_strictly(wanted)


def test_the_darkest_fields_of_the_matrix_are_its_diagonal(server):
    ran = Ran(server, "internvl_retrieval_grid")
    told = ran.told("InternVL Compare")
    scores = np.array(told["scores"])
    assert told["columns"] == list(THINGS) and scores.shape == (len(THINGS), len(THINGS))
    assert scores.argmax(axis=0).tolist() == scores.argmax(axis=1).tolist() == list(range(len(THINGS)))
    found = [THINGS[picture["name"]].shape for picture in ran.told("Find by a sentence (Turkish)")["ranked"]]
    assert found == ["star"] * 3


def test_one_strange_frame_does_not_change_what_the_video_is(server):
    ran = Ran(server, "internvl_video")
    frames = [named(best(picture)) for picture in ran.told("Each frame by itself")["pictures"]]
    star, circle = {("yellow", "star")}, {("red", "circle")}
    assert frames == [star, star, star, circle, star, star, star, star]
    assert named(ran.told("InternVL Video Classify")["video"][0]["label"]) == star


def test_the_talk_is_about_the_picture(server):
    ran = Ran(server, "internvl_chat")
    assert ran.text("What Generate Text says") == "a big blue circle"
    assert ran.told("Ask (German)")["text"] == "Kreis" and ran.told("Ask on (German)")["text"] == "blau"
