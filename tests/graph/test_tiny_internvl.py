"""The tiny InternVL through the queue: its best label for new pictures is the right one, in every language it was
trained in.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mulan_nodes.tools.tinyworld import captions, world
from mulan_nodes.tools.tinyworld.contrastive_examination import GOAL, QUESTIONS

ASKED = {name: QUESTIONS[name] for name in ("shape", "colour", "colour and shape", "shape in templates")}
NO_TEMPLATES, TEMPLATES = "none", {"en": "English (paper)", "zh": "Chinese (paper)", "de": "German"}


@pytest.fixture(scope="module")
def album(server) -> Path:
    """A drawing of everything, numbered in the order of `world.THINGS`; the names do not tell."""
    folder, rng = Path(server.folder, "input", "tiny album"), np.random.default_rng(9)
    folder.mkdir()
    for number, thing in enumerate(world.THINGS):
        Image.fromarray(world.draw(thing, rng)).save(folder / f"{number}.png")
    return folder


def graph(mode: str, language: str, album: Path) -> dict:
    """Loader 1, then a classifier for each question."""
    words = captions.LANGUAGES[language]

    def asking(question) -> dict:
        labels = dict.fromkeys(question.label(thing, words) for thing in world.THINGS)
        return {
            "class_type": "InternVLZeroShotClassify",
            "inputs": {
                "internvl": ["1", 0],
                "labels": "\n".join(labels),
                "folder": album.name,
                "top_k": 1,
                "templates": TEMPLATES[language] if question.templates else NO_TEMPLATES,
            },
        }

    loader = {
        "class_type": "InternVLLoader",
        "inputs": {
            "checkpoint": "tiny_internvl_vision.safetensors",
            "text_encoder": "tiny_internvl.safetensors",
            "mode": mode,
        },
    }
    return {
        "1": loader,
        **{
            name: asking(question)
            for name, question in ASKED.items()
            if not question.templates or language in TEMPLATES
        },
    }


@pytest.mark.parametrize("language", captions.TRAINED)
@pytest.mark.parametrize("mode", ["C", "G"])
def test_labels_of_every_language(server, album, mode, language):
    shown, words = server.run(graph(mode, language, album)).nodes, captions.LANGUAGES[language]
    for name, question in ASKED.items():
        if question.templates and language not in TEMPLATES:
            continue
        told = json.loads(shown[name]["text"][0])
        assert [picture["name"] for picture in told["pictures"]] == [
            f"{number}.png" for number in range(len(world.THINGS))
        ]
        best = [picture["labels"][0]["label"] for picture in told["pictures"]]
        right = [
            answer == question.label(thing, words)
            for thing, answer in zip(world.THINGS, best, strict=True)
            if not thing.held_out
        ]
        assert np.mean(right) >= GOAL, (name, [pair for pair in zip(world.THINGS, best, strict=True)])
