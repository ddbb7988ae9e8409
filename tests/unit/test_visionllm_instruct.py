"""What is kept of what was found, labels of an answer's tools, and the decoders that they run."""

from __future__ import annotations

import pytest
import torch
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.visionllm_nodes.detections.results import Detection, Segmentation
from mulan_nodes.visionllm_nodes.model.answers import Reply, answer
from mulan_nodes.visionllm_nodes.model.generation import ToolCall
from mulan_nodes.visionllm_nodes.model.prefill import View, ask
from mulan_nodes.visionllm_nodes.model.prompt_templates import PICTURE, Turn, chat
from mulan_nodes.visionllm_nodes.model.selection import Limits, overlaps, select
from mulan_nodes.visionllm_nodes.model.special_tokens import DETECT, EDIT, GENERATE, GROUND, POSE, SEGMENT, slot
from mulan_nodes.visionllm_nodes.model.tool_use import instruct, labels, run_tools
from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm


def found(*rows) -> Detection:
    """Things as (label, score, x1, y1, x2, y2)."""
    labels, scores, *corners = zip(*rows)
    return Detection(
        (100, 100), ("a", "b"), torch.tensor(labels), torch.tensor(scores), torch.tensor(corners, dtype=torch.float32).T
    )


THINGS = found(
    (0, 0.5, 0, 0, 10, 10),
    (0, 0.9, 1, 0, 11, 10),
    (1, 0.8, 0, 0, 10, 10),
    (1, 0.2, 50, 50, 60, 60),
    (0, 0.8, 50, 50, 60, 60),
)


@pytest.mark.parametrize(
    "limits, kept",
    [
        (Limits(), [1, 2, 4, 0, 3]),
        (Limits(count=2), [1, 2]),
        (Limits(threshold=0.5), [1, 2, 4, 0]),
        (Limits(per_name=1), [1, 2]),
        (Limits(overlap=0.5), [1, 2, 4, 3]),
        (Limits(overlap=0.5, across_names=True), [1, 4]),
        (Limits(overlap=0.9), [1, 2, 4, 0, 3]),
        (Limits(overlap=0.5, per_name=1), [1, 2]),
        (Limits(threshold=0.95), []),
    ],
)
def test_what_is_kept(limits, kept):
    assert select(THINGS, limits).tolist() == kept


def test_overlaps():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 20, 20], [20, 20, 20, 20]])
    expected = torch.tensor([[1, 1 / 3, 0, 0], [1 / 3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert torch.allclose(overlaps(boxes, boxes), expected)


def test_areas_of_names():
    names = torch.tensor([[0, 0, 2], [0, 2, 2]])
    areas = Segmentation(("sky", "sea", "dog"), names).areas()
    assert areas.labels.tolist() == [0, 2] and areas.boxes.tolist() == [[0, 0, 2, 2], [1, 0, 3, 2]]
    assert torch.equal(areas.masks[1], names == 2) and areas.scores.tolist() == [1, 1]


def reply(*parts: tuple[str, str], states: int = 4, width: int = 48) -> Reply:
    """An answer of leads and tools."""
    torch.manual_seed(0)
    tools = tuple(ToolCall(tool, 0, torch.randn(6 if tool in (GENERATE, EDIT) else states, width)) for _, tool in parts)
    return Reply(
        "".join(f"{lead}{tool}" for lead, tool in parts),
        "".join(lead for lead, _ in parts),
        True,
        tools,
        tuple(lead for lead, _ in parts),
    )


@pytest.mark.parametrize(
    "sentence, leads, expected",
    [
        (
            "Can you analyze the image and identify the red car, dog present?",
            ["Yes, here are the results for red car", ", dog"],
            ["red car", "dog"],
        ),
        ("Find the dog.", ["Sure, the dog"], ["dog"]),
        ("Where is Rex's ball?", ["The answer is a round thing"], ["round thing"]),
        (
            "What do you see?",
            ["<det>a man in a hat</det>", " rides <det>two horses</det>"],
            ["a man in a hat", "two horses"],
        ),
        ("找出红色的圆和狗", ["好的，这是红色的圆", "，狗"], ["红色的圆", "狗"]),
        ("빨간 원과 개를 찾아줘", ["네, 빨간 원과"], ["빨간 원과"]),
        ("Find cats", ["Yes, here are the results for cat"], ["cat"]),
        ("Find it", [""], ["object"]),
    ],
)
def test_labels_are_the_words_before_a_tool(sentence, leads, expected):
    assert labels(reply(*((lead, DETECT) for lead in leads)), sentence) == expected


def test_the_one_thing_of_a_sentence_bears_the_sentence():
    assert labels(reply(("Yes, it is ", GROUND)), " the left dog ") == ["the left dog"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_visionllm(random_visionllm.checkpoint(tmp_path_factory.mktemp("whole") / "VisionLLMv2", mappers=True))


@pytest.fixture
def picture():
    return torch.rand(70, 90, 3, generator=torch.Generator().manual_seed(1))


def test_each_tool_runs_its_decoder(loaded, picture):
    loaded.ready()
    said = reply(
        ("for a", DETECT),
        (", b", DETECT),
        ("it is", GROUND),
        ("sky", SEGMENT),
        ("sea", SEGMENT),
        ("see", GENERATE),
        ("and", EDIT),
    )
    done = run_tools(loaded, picture, "a, b, sky, sea", said, Limits(count=5))
    assert not done.notes and done.posed is None
    assert done.found.names == ("a", "b", "a, b, sky, sea", "sky", "sea") and done.found.masks.shape == (
        len(done.found),
        70,
        90,
    )
    counts = torch.bincount(done.found.labels, minlength=5)
    assert counts[:2].sum() == 5 and counts[2] == 1 and counts[3:].max() == 1
    assert (done.found.scores.diff() <= 0).all()
    assert done.generate.shape == done.edit.shape == (1, 77, 768) and not torch.equal(done.generate, done.edit)


def test_keypoints_belong_to_the_objects_of_the_answer(loaded, picture):
    loaded.ready()
    done = run_tools(
        loaded,
        picture,
        "the nose and tail of the dog",
        reply(("dog", DETECT), ("nose", POSE), ("tail", POSE)),
        Limits(count=3),
    )
    assert done.found is None and done.posed.names == ("dog",) and done.posed.keypoint_names == ("nose", "tail")
    assert done.posed.keypoints.shape == (3, 2, 2)
    alone = run_tools(loaded, picture, "the nose", reply(("nose", POSE)))
    assert alone.posed is None and "no object" in alone.notes[0]


def test_tools_that_cannot_run_are_told(loaded, picture, tmp_path):
    blind = run_tools(loaded, None, "a dog", reply(("dog", DETECT), ("edit", EDIT)))
    assert (
        blind.found is None
        and blind.edit is None
        and [note.split(":")[0] for note in blind.notes] == ["[DET] was not run", "[EDIT] was not run"]
    )
    plain = load_visionllm(random_visionllm.checkpoint(tmp_path / "plain"))
    assert "no part for it (generate)" in run_tools(plain, picture, "draw", reply(("it", GENERATE))).notes[0]


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    """It answers everything with [DET] [DET] [DET] ..."""
    return load_visionllm(random_visionllm.checkpoint(tmp_path_factory.mktemp("eager") / "VisionLLMv2", writes=DETECT))


def test_a_model_that_writes_tools_has_them_run(eager, picture):
    done = instruct(eager, picture, "find the dog", limit=3, limits=Limits(count=4))
    assert done.reply.text == DETECT * 3 and done.reply.spoken == "" and len(done.reply.tools) == 3
    assert len(done.found) == 4 and set(done.found.names) == {"object"}


def test_a_written_tool_asks_its_decoder_what_a_given_one_does(eager, picture):
    (written,) = answer(eager, [picture], [chat("find the dog")], limit=1)
    with torch.no_grad():
        (given,) = ask(eager, View(eager, picture), [Turn(PICTURE + "find the dog", slot(DETECT))])
    assert torch.allclose(written.tools[0].states, given[0], atol=1e-4)
