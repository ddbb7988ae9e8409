"""Prompts of labeled regions: which lines are whose, which pixels are whose."""

from __future__ import annotations

import pytest
import torch

from mulan_nodes.visionllm_nodes.detections.prompted_regions import (
    RegionPrompts,
    label_masks,
    match_labels,
    read_region_prompts,
    soften,
)


def box(x: int, y: int, width: int, height: int, label: str = "") -> dict:
    return {"x": x, "y": y, "width": width, "height": height} | ({"label": label} if label else {})


@pytest.mark.parametrize(
    ("text", "whole", "of_label"),
    [
        ("a park", "a park", {}),
        ("a park\n\n  at night ", "a park at night", {}),
        ("cat: a red cat\na park", "a park", {"cat": "a red cat"}),
        ("猫：一只红猫\n公园", "公园", {"猫": "一只红猫"}),
        ("the left dog:  ein weißer Hund", "", {"the left dog": "ein weißer Hund"}),
        ("dog: it says: hello", "", {"dog": "it says: hello"}),
        ("16:9 photo of a (red:1.2) cat", "16:9 photo of a (red:1.2) cat", {}),
        ("", "", {}),
    ],
)
def test_lines_are_of_a_label_or_of_the_whole_image(text, whole, of_label):
    assert read_region_prompts(text) == RegionPrompts(whole, of_label)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat: \u00a0\na", None),
        ("cat:\u3000", None),
        ("cat：", "the label 'cat' has no prompt"),
        ("cat: a\nCat: b", "the label 'Cat' has two prompts"),
        ("\n".join(f"l{number}: x" for number in range(10_000)), "10000 labels, and at most"),
    ],
)
def test_lines_that_cannot_be_read(text, words):
    if words is None:  # the colon at the end of a line is no label's: white space behind it is gone
        assert read_region_prompts(text).of_label == {}
        return
    with pytest.raises(ValueError, match=words):
        read_region_prompts(text)


def test_boxes_of_one_label_share_a_mask_in_each_image():
    frames = [[box(0, 0, 2, 2, "cat"), box(5, 0, 1, 4, "Cat"), box(2, 2, 2, 2, "dog")], [box(1, 1, 1, 1, "dog")]]
    found = label_masks(frames, 4, 6)
    assert list(found) == ["cat", "dog"] and all(mask.shape == (2, 4, 6) for mask in found.values())
    assert found["cat"].sum((1, 2)).tolist() == [8, 0] and found["dog"].sum((1, 2)).tolist() == [4, 1]


def test_boxes_without_labels_have_their_place_as_a_name():
    found = label_masks([[box(0, 0, 1, 1), box(1, 0, 1, 1, "cat"), box(2, 0, 1, 1)]], 1, 3)
    assert {name: mask[0, 0].tolist() for name, mask in found.items()} == {
        "region1": [1, 0, 0],
        "cat": [0, 1, 0],
        "region3": [0, 0, 1],
    }


def test_masks_stand_for_their_boxes():
    masks = torch.zeros(2, 2, 3)
    masks[0, 0, 0] = masks[1, 1, 2] = 1
    found = label_masks([[box(0, 0, 3, 2, "a")], [box(0, 0, 3, 2, "a")]], 4, 6, masks)
    assert found["a"].shape == (2, 4, 6)
    assert found["a"][0, :2, :2].all() and found["a"][1, 2:, 4:].all() and found["a"].sum() == 8
    with pytest.raises(ValueError, match="there are 2 masks for 1 boxes"):
        label_masks([[box(0, 0, 3, 2, "a")]], 4, 6, masks)


def test_labels_meet_whatever_their_case_and_punctuation():
    assert match_labels(["Cat", "the dog!", "?", "fish"], ["cat", "The Dog", "?"]) == {
        "Cat": "cat",
        "the dog!": "The Dog",
        "?": "?",
        "fish": None,
    }


def test_a_soft_edge_lies_outside():
    mask = torch.zeros(2, 1, 7)
    mask[0, 0, 3] = 1
    assert soften(mask, 0) is mask
    soft = soften(mask, 1)
    assert soft[0, 0].tolist() == [0, 0, 0.5, 1, 0.5, 0, 0] and not soft[1].any()
    assert (soften(mask, 3)[0, 0].diff()[:3] > 0).all()
