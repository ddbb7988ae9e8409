"""The tiny VisionLLM's questions about regions: their answers are true, their regions stand where they are named."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from mulan_nodes.mulan.tiny_models.packs import read_pack
from mulan_nodes.tools.tinyworld import pack
from mulan_nodes.tools.tinyworld.world import HELD_OUT, PALETTE, SHAPES
from mulan_nodes.tools.tinyworld_visionllm import region_attention, scenes, vocabulary
from mulan_nodes.tools.tinyworld_visionllm.architecture import build_reader
from mulan_nodes.tools.tinyworld_visionllm.batches import IGNORED, RowMaker
from mulan_nodes.tools.tinyworld_visionllm.reading import Asked, look, read
from mulan_nodes.tools.tinyworld_visionllm.region_examination import MARKS
from mulan_nodes.tools.tinyworld_visionllm.region_questions import (
    ANY_KIND,
    DIRECTIONS,
    KINDS,
    any_exchange,
    draw_scene_of_likes,
    exchange,
)
from mulan_nodes.visionllm_nodes.model.prompt_templates import VICUNA
from mulan_nodes.visionllm_nodes.model.special_tokens import REGION
from mulan_nodes.visionllm_nodes.region_prompts import regions_per_image


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary.tokenizer_of(vocabulary.train_tokenizer())


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


def test_regions_stand_where_they_are_named_first(tokenizer):
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


def test_heads_are_taught_to_look_at_numbers_and_at_the_right_region(tokenizer):
    maker, region = RowMaker(tokenizer), tokenizer.ids[REGION]
    rows, answers = [], []
    for _, one, _, answer in [*asked("bigger", 20), *asked("which", 20), *asked("same", 20)]:
        rows.append(maker.row(one.exercise()))
        answers.append(answer)
    wanted = region_attention.wanted_places(rows, region)
    assert all(first == last for places in wanted.values() for *_, first, last in places)
    for row, place, at, _ in wanted[region_attention.NUMBER, 0]:
        assert rows[row].ids[place] == region and tokenizer.decode([rows[row].ids[at]]) in "123"
    assert len(wanted[region_attention.NUMBER, 0]) == sum(row.ids.count(region) for row in rows)
    for row, place, at, _ in wanted[region_attention.OTHER, 0]:
        assert at < place and rows[row].ids[place] == rows[row].ids[at] == region
    assert len(wanted[region_attention.OTHER, 0]) == len(rows)
    named = [row for row, answer in enumerate(answers) if answer.startswith("region")]
    assert [row for row, *_ in wanted[region_attention.RIGHT, 0]] == named
    for row, place, at, _ in wanted[region_attention.RIGHT, 0]:
        assert rows[row].ids[at] == region and answers[row] == f"region{tokenizer.decode([rows[row].ids[at - 1]])}"
        assert rows[row].labels[place] == rows[row].ids[at - 1]


def test_heads_are_taught_to_look_at_the_word_of_direction(tokenizer):
    maker, region = RowMaker(tokenizer), tokenizer.ids[REGION]
    compared = [(one.exercise(), answer) for kind in ("place", "same") for _, one, _, answer in asked(kind)]
    exercises = [exercise for exercise, _ in compared]
    rows = [maker.row(exercise) for exercise in exercises]
    wanted = region_attention.wanted_directions(rows, exercises, tokenizer)
    said = {}
    for row, place, first, last in wanted[region_attention.OTHER, 1]:
        assert place == max(place for place, id in enumerate(rows[row].ids) if id == region)
        said[row] = tokenizer.decode(rows[row].ids[first : last + 1])
        assert said[row] in exercises[row].turn.user
    assert set(said.values()) == set(DIRECTIONS)
    assert list(said) == [row for row, one in enumerate(exercises) if not re.search("same|both", one.turn.user)]
    for row, place, first, last in wanted[region_attention.RIGHT, 1]:
        assert first == last < place and rows[row].ids[first] == region
        written, answer = tokenizer.decode([rows[row].labels[place]]), compared[row][1]
        assert answer.startswith(written) if answer in ("yes", "no") else answer == f"region{written}"


def test_a_loss_on_a_head_turns_it_where_it_shall_look(tokenizer):
    torch.manual_seed(0)
    model, maker, rng = build_reader(len(tokenizer)), RowMaker(tokenizer), np.random.default_rng(8)
    region = tokenizer.ids[REGION]
    scene = draw_scene_of_likes(rng, scenes.SEEN, 3)
    questions = [Asked(0, any_exchange(scene, rng, ["which"])) for _ in range(4)]
    optimizer, losses = torch.optim.Adam(model.language.parameters(), lr=3e-3), []
    for _ in range(25):
        with torch.no_grad():
            seen = look(model, maker, [scene])
        with region_attention.attention_of(model.language) as attended:
            _, rows, _ = read(model, maker, seen, [scene], questions, rng)
        losses.append(region_attention.looking_loss(attended, region_attention.wanted_places(rows, region)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 6 and losses[-1] < 1


def test_a_loss_on_the_distance_vanishes_at_the_truth(tokenizer):
    maker, region = RowMaker(tokenizer), tokenizer.ids[REGION]
    rows, marked = [], []
    for items, one, *_ in asked("place", 20):
        exercise = one.exercise()
        rows.append(maker.row(exercise))
        scene_items = dict(zip(one.items, items, strict=True))
        marked.append([scene_items[item] for item in exercise.regions])
    states = torch.zeros(len(rows), max(len(row.ids) for row in rows), 2)
    for number, (row, (first, last)) in enumerate(zip(rows, marked, strict=True)):
        at = max(place for place, id in enumerate(row.ids) if id == region)
        states[number, at] = torch.tensor([last.x - first.x, last.y - first.y]) / 64
    attended = region_attention.Attended(states=states)
    assert region_attention.distance_loss(attended, rows, region, marked, torch.nn.Identity()) < 1e-10
    assert region_attention.distance_loss(attended, rows, region, [m[::-1] for m in marked], torch.nn.Identity()) > 0.1


def test_a_loss_on_the_direction_vanishes_at_the_truth(tokenizer):
    maker, region = RowMaker(tokenizer), tokenizer.ids[REGION]
    exercises, marked, last_is_further = [], [], []
    for items, one, question, answer in asked("place"):
        exercises.append(one.exercise())
        scene_items = dict(zip(one.items, items, strict=True))
        marked.append([scene_items[item] for item in exercises[-1].regions])
        named = numbers(question)
        last_is_further.append(answer == "no" if answer in ("yes", "no") else numbers(answer) == [named[-1]])
    rows = [maker.row(exercise) for exercise in exercises]
    states = torch.zeros(len(rows), max(len(row.ids) for row in rows), 1)
    for number, (row, further) in enumerate(zip(rows, last_is_further, strict=True)):
        states[number, max(place for place, id in enumerate(row.ids) if id == region)] = 20 if further else -20
    for sign, lowest, highest in ((1, 0, 1e-6), (-1, 19, 21)):
        attended = region_attention.Attended(states=sign * states)
        lost = region_attention.direction_loss(attended, rows, exercises, region, marked, torch.nn.Identity())
        assert lowest <= lost < highest
    nothing = region_attention.direction_loss(attended, [], [], region, [], torch.nn.Identity())
    assert nothing == 0, "questions of other kinds"


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
