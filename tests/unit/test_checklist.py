"""A checklist: how its lines are read, when an item holds, and which pixels are drawn anew."""

from __future__ import annotations

import pytest
import torch

from mulan_nodes.visionllm_nodes.detections.checked_images import best_first, check_image
from mulan_nodes.visionllm_nodes.detections.checklist import Question, Thing, read_checklist

HEIGHT, WIDTH = 8, 12


@pytest.mark.parametrize(
    ("line", "item"),
    [
        ("red fox", ("red fox", 1, None)),
        ("- red fox", ("red fox", 1, None)),
        ("3. red fox", ("red fox", 1, None)),
        ("white rabbit: 2", ("white rabbit", 2, 2)),
        ("white rabbit:2", ("white rabbit", 2, 2)),
        ("白い兎：２", ("白い兎", 2, 2)),
        ("أرنب: ٣+", ("أرنب", 3, None)),
        ("text: 0", ("text", 0, 0)),
        ("Is it snowing?", ("Is it snowing?", ("yes",))),
        ("天气好吗？是, 好", ("天气好吗？", ("是", "好"))),
        ("Which is it: a cat or a dog? a cat", ("Which is it: a cat or a dog?", ("a cat",))),
        ("What? Why? because", ("What? Why?", ("because",))),
    ],
)
def test_a_line_is_a_thing_or_a_question(line, item):
    (read,) = read_checklist(f"\n  {line}  \n{line}\n")
    values = (read.name, read.fewest, read.most) if isinstance(read, Thing) else (read.question, read.answers)
    assert values == item


def test_a_question_may_be_about_a_thing_of_the_list():
    about, other = read_checklist("Red Fox: Is it running? no\nfox hole: Is it dark?\nred fox")[:2]
    assert isinstance(about, Question) and (about.question, about.answers, about.about) == (
        "Is it running?",
        ("no",),
        "red fox",
    )
    assert isinstance(other, Question) and (other.question, other.about) == ("fox hole: Is it dark?", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" \n", "enter what must be in the image"),
        ("photo: a cat", "'a cat' in the line 'photo: a cat' is no number of objects"),
        ("cat:", "'' in the line 'cat:' is no number|names"),
        ("cat: 2\nCat: 3", "'cat: 2' and 'Cat: 3' have one name"),
        ("cat, dog", "names several things"),
        ("\n".join(f"thing {number}" for number in range(10_001)), "10001 lines, and at most"),
    ],
)
def test_lines_that_cannot_be_read_are_named(text, words):
    with pytest.raises(ValueError, match=words):
        read_checklist(text)


@pytest.mark.parametrize(
    ("answers", "said", "holds"),
    [
        (("yes",), "Yes.", True),
        (("yes",), "Yes, there is one", True),
        (("yes",), "yesterday", False),
        (("yes",), "No", False),
        (("yes",), "", False),
        (("no",), "Not sure", False),
        (("2",), "Two", True),
        (("two", "three"), "3", True),
        (("dark red",), "The dark-red one", True),
        (("red",), "dark red", False),
        (("是",), "是的", True),
        (("हाँ",), "हाँ।", True),
        (("",), "anything", False),
    ],
)
def test_an_answer_holds_where_it_begins_with_an_expected_one(answers, said, holds):
    assert Question("", "", answers).holds(said) == holds


# --- masks ---


def box(x: int, label: str, score: float = 0.9) -> dict:
    return {"x": x, "y": 2, "width": 2, "height": 2, "label": label, "score": score}


def checked(text: str, boxes: list[dict], answers: str = "yes", places=(), grow: int = 0):
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH)
    for mask, one in zip(masks, boxes, strict=True):
        mask[2:4, one["x"] : one["x"] + 2] = 1
    items = read_checklist(text)
    said = {item: answers for item in items if isinstance(item, Question)}
    return check_image(items, said, boxes, masks, places, grow)


def columns(mask: torch.Tensor) -> list[int]:
    return mask[3].nonzero().flatten().tolist()


def test_nothing_is_drawn_anew_where_all_holds():
    found = checked("cat: 2\ndog\nrat: 0\nIs it snowing?", [box(0, "cat"), box(3, "Cat"), box(6, "dog")])
    assert found.score == 1 and not found.failed and not found.mask.any()


def test_objects_that_are_too_many_are_drawn_anew_the_least_sure_first():
    found = checked("cat: 1\nrat: 0", [box(0, "cat", 0.5), box(3, "cat", 0.8), box(6, "rat"), box(9, "bird")])
    assert columns(found.mask) == [0, 1, 6, 7] and found.failed == ["cat: 2, expected 1", "rat: 1, expected 0"]
    assert not found.mask[:2].any() and found.score == 0


def test_everything_but_what_is_right_is_drawn_anew_where_a_thing_is_missing():
    found = checked("cat: 2\ndog", [box(3, "cat"), box(8, "bird")], grow=1)
    assert columns(found.mask) == [0, 1, *range(6, 12)] and found.mask[0].all()
    assert found.failed == ["cat: 1, expected 2", "dog: 0, expected 1 or more"]


def test_missing_things_are_drawn_into_their_free_places():
    places = [{"x": 0, "y": 0, "width": 3, "height": 8, "label": "CAT"}]
    there = [*places, {"x": 6, "y": 0, "width": 3, "height": 8, "label": "cat"}]
    assert columns(checked("cat: 2", [box(0, "cat")], places=there).mask) == [6, 7, 8]
    assert columns(checked("cat: 2", [box(0, "cat")], places=places).mask) == list(range(2, 12))  # no place is left


def test_a_wrong_answer_is_about_its_thing_or_about_everything():
    boxes = [box(0, "cat"), box(5, "dog")]
    assert columns(checked("cat\ndog\ncat: Is it black?", boxes, "no").mask) == [0, 1]
    found = checked("cat\ndog\nIs it night?", boxes, "No.")
    assert columns(found.mask) == [2, 3, 4, *range(7, 12)] and found.failed == ["Is it night? → No."]
    assert checked("Is it night?", [], "no").mask.all()


def test_the_best_image_has_the_highest_score_then_the_surest_objects():
    images = [
        checked("cat\ndog", [box(0, "cat", 0.9)]),
        checked("cat\ndog", [box(0, "cat", 0.6), box(3, "dog", 0.7)]),
        checked("cat\ndog", [box(0, "cat", 0.9), box(3, "dog", 0.7)]),
        checked("cat\ndog", [box(0, "cat", 0.9), box(3, "dog", 0.7)]),
    ]
    assert best_first(images) == [2, 3, 1, 0]
