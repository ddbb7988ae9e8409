"""The tiny VisionLLM's questions about regions: their answers are true, their regions stand where they are named."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from mulan_nodes.mulan.tiny_models.packs import read_pack
from mulan_nodes.tools.tinyworld import pack
from mulan_nodes.tools.tinyworld.world import HELD_OUT, PALETTE, SHAPES
from mulan_nodes.tools.tinyworld_visionllm import scenes, vocabulary
from mulan_nodes.tools.tinyworld_visionllm.batches import IGNORED, RowMaker
from mulan_nodes.tools.tinyworld_visionllm.region_examination import MARKS
from mulan_nodes.tools.tinyworld_visionllm.region_questions import (
    ANY_KIND,
    KINDS,
    any_exchange,
    draw_scene_of_likes,
    exchange,
)
from mulan_nodes.visionllm_nodes.model.prompt_templates import VICUNA
from mulan_nodes.visionllm_nodes.model.special_tokens import REGION
from mulan_nodes.visionllm_nodes.region_prompts import regions_per_image


def asked(kind: str, count: int = 60, seed: int = 4):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scene = draw_scene_of_likes(rng, scenes.SEEN)
        if (one := exchange(scene, rng, kind)) is not None:
            yield [scene.items[item] for item in one.items], one, *one.rounds[-1]


def numbers(text: str) -> list[int]:
    return [int(number) - 1 for number in re.findall(r"region(\d)", text)]


@pytest.mark.parametrize("kind", ["colour", "shape", "size"])
def test_a_region_is_what_it_shows(kind):
    for items, _, question, answer in asked(kind):
        assert answer == getattr(items[numbers(question)[0]].thing, kind)


def test_two_regions_are_compared():
    for items, _, question, answer in asked("same"):
        one, other = (items[number].thing for number in numbers(question))
        name = "shape" if "shape" in question else "colour"
        assert answer == ("yes" if getattr(one, name) == getattr(other, name) else "no")
    for items, _, question, answer in asked("bigger"):
        radii = {number: items[number].radius for number in numbers(question)}
        assert numbers(answer) == [(max if "bigger" in question else min)(radii, key=radii.__getitem__)]


def test_places_are_those_of_the_drawing():
    for items, _, question, answer in asked("place", 200):
        one, other = (items[number] for number in numbers(question))
        before = {"left": one.x < other.x, "right": one.x > other.x, "above": one.y < other.y, "below": one.y > other.y}
        before |= {"higher": before["above"], "lower": before["below"]}
        (said,) = (word for word in before if word in question)
        if question.startswith("Is"):
            assert answer == ("yes" if before[said] else "no")
        else:
            assert numbers(answer) == [numbers(question)[0 if before[said] else 1]]


def test_one_of_several_and_whether_it_is_one():
    for items, _, question, answer in asked("which"):
        words = set(re.findall(r"[a-z]+", question)) & {*PALETTE, *SHAPES, *scenes.SIZES}
        fitting = [
            number
            for number, item in enumerate(items)
            if words <= {item.thing.colour, item.thing.shape, item.thing.size}
        ]
        assert words and numbers(answer) == fitting
    found = []
    for items, _, question, answer in asked("whether", 200):
        thing = items[numbers(question)[0]].thing
        words = set(re.findall(r"[a-z]+", question)) & {*PALETTE, *SHAPES}
        assert (answer == "yes") == (words <= {thing.colour, thing.shape})
        found.append(answer)
    assert 0.35 < found.count("yes") / len(found) < 0.65


def test_a_later_question_continues_the_one_before():
    for items, one, question, answer in asked("later"):
        (first, before), (number, *_) = one.rounds[0], numbers(one.rounds[0][0])
        about = items[(numbers(question) or [number])[0]].thing
        assert before in vars(items[number].thing).values() and answer in vars(about).values() and first != question


def test_regions_stand_where_they_are_named_first():
    tokenizer = vocabulary.tokenizer_of(vocabulary.train_tokenizer())
    maker, rng = RowMaker(tokenizer), np.random.default_rng(6)
    for kind in KINDS:
        for _, one, _, answer in asked(kind, 10):
            exercise = one.exercise()
            turns = [*exercise.history, exercise.turn]
            text = VICUNA.prompt(turns)
            named = list(dict.fromkeys(number for question, _ in one.rounds for number in numbers(question)))
            assert exercise.regions == tuple(one.items[number] for number in named)
            assert text.count(REGION) == len(exercise.regions)
            row = maker.row(exercise)
            assert maker.opening + row.ids == tokenizer.encode(text, 64)
            labelled = [label for label in row.labels if label != IGNORED]
            assert labelled == [*tokenizer.encode(answer, bos=False), tokenizer.eos]
    scene = draw_scene_of_likes(rng, scenes.SEEN)
    said = [any_exchange(scene, rng, ANY_KIND).turn.user for _ in range(300)]
    assert not any(f"{colour} {shape}" in text for text in said for colour, shape in HELD_OUT)


@pytest.mark.parametrize("mark", MARKS)
def test_marks_lie_on_their_items(mark):
    rng = np.random.default_rng(7)
    scene = draw_scene_of_likes(rng, scenes.SEEN, 3)
    (regions,) = regions_per_image([(128, 128)], 112, **MARKS[mark](list(scene.items), rng))
    assert len(regions) == len(scene.items)
    for covered, item in zip(regions.masks.numpy(), scene.items, strict=True):
        assert (covered & item.mask).any()
        assert not any((covered & other.mask).sum() > covered.sum() / 2 for other in scene.items if other is not item)


def test_a_pack_is_rewritten_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "pack_path", lambda name: tmp_path / f"{name}.gz")
    torch.manual_seed(0)
    tensors = {"one": torch.randn(70, 200), "other": torch.randn(70, 200), "bias": torch.randn(5)}
    before = pack.write_pack("before", tensors, {"title": "before"})
    first, about = read_pack(before)
    second, said = read_pack(pack.rewrite_pack("after", before, {"one": tensors["other"]}))
    assert about == said == {"title": "before"}
    assert torch.equal(second["one"], first["other"]) and torch.equal(second["other"], first["other"])
    assert torch.equal(second["bias"], first["bias"])
    with pytest.raises(ValueError, match="has no three"):
        pack.rewrite_pack("after", before, {"three": torch.zeros(1)})
