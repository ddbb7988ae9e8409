"""What is kept of what was found, labels of an answer's tools, and the decoders that they run."""

from __future__ import annotations

import pytest
import torch

from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.visionllm_nodes.detections.results import Detections, Segmentation
from mulan_nodes.visionllm_nodes.model.answers import Reply, answer
from mulan_nodes.visionllm_nodes.model.generation import ToolCall
from mulan_nodes.visionllm_nodes.model.prefill import ImageView, super_link_states
from mulan_nodes.visionllm_nodes.model.prompt_templates import IMAGE_LINE, Turn, chat
from mulan_nodes.visionllm_nodes.model.selection import Limits, nms_mask, select
from mulan_nodes.visionllm_nodes.model.special_tokens import DETECT, EDIT, GENERATE, GROUND, POSE, SEGMENT, tool_text
from mulan_nodes.visionllm_nodes.model.tool_use import instruct, labels, run_tools
from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm


def found(*rows) -> Detections:
    """Things as (label, score, x1, y1, x2, y2)."""
    labels, scores, *corners = zip(*rows, strict=False)
    return Detections(
        (100, 100), ("a", "b"), torch.tensor(labels), torch.tensor(scores), torch.tensor(corners, dtype=torch.float32).T
    )


DETECTED = found(
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
        (Limits(max_detections=2), [1, 2]),
        (Limits(threshold=0.5), [1, 2, 4, 0]),
        (Limits(max_per_name=1), [1, 2]),
        (Limits(iou_threshold=0.5), [1, 2, 4, 3]),
        (Limits(iou_threshold=0.5, class_agnostic=True), [1, 4]),
        (Limits(iou_threshold=0.9), [1, 2, 4, 0, 3]),
        (Limits(iou_threshold=0.5, max_per_name=1), [1, 2]),
        (Limits(threshold=0.95), []),
        (Limits(wanted=1), [1, 4]),
        (Limits(wanted=2), [1, 2, 4, 0, 3]),
        (Limits(wanted=1, threshold=0.85), [1]),
    ],
)
def test_limits_keep_the_best(limits, kept):
    assert select(DETECTED, limits).tolist() == kept


def nms_by_definition(boxes: torch.Tensor, labels: torch.Tensor | None, iou_threshold: float) -> list[bool]:
    """Box by box, best first: it goes where a kept one has a higher IoU with it; empty boxes overlap nothing."""
    stays: list[bool] = []
    low, high = (
        torch.maximum(boxes[:, None, :2], boxes[None, :, :2]),
        torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
    )
    common, areas = (high - low).clamp(min=0).prod(-1), (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    iou = common / (areas[:, None] + areas[None] - common).clamp(min=torch.finfo(torch.float32).tiny)
    for box in range(len(boxes)):
        rivals = [other for other in range(box) if stays[other] and (labels is None or labels[other] == labels[box])]
        stays.append(not any(iou[other, box] > iou_threshold for other in rivals))
    return stays


@pytest.mark.parametrize("kind", ["any", "on a grid", "repeated", "over the edges", "empty"])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_nms_is_what_it_is_by_definition(kind, count):
    generator = torch.Generator().manual_seed(count)
    corners, sides = (torch.rand(count, 2, generator=generator) * size for size in (1000, 400))
    boxes = torch.cat((corners, corners + sides), 1)
    if kind == "on a grid":
        boxes = (boxes / 100).round() * 100
    elif kind == "repeated":
        boxes = boxes[torch.arange(count) // 3]
    elif kind == "over the edges":
        boxes -= 500
    elif kind == "empty":
        boxes[::3, 2:] = boxes[::3, :2]
    labels = torch.randint(0, 4, (count,), generator=generator)
    for iou_threshold in (0.0, 0.25, 0.5, 1.0):
        for of_label in (None, labels):
            assert nms_mask(boxes, of_label, iou_threshold).tolist() == nms_by_definition(
                boxes, of_label, iou_threshold
            )


@pytest.mark.parametrize("seed", range(10))
def test_a_detection_of_a_segmentation_has_the_box_around_its_pixels(seed):
    labels = torch.randint(0, 6, (7, 9), generator=torch.Generator().manual_seed(seed))
    detections = Segmentation(tuple("abcdefgh"), labels).to_detections()
    assert detections.labels.tolist() == sorted(set(labels.flatten().tolist())) and detections.masks is not None
    for label, box, mask in zip(detections.labels, detections.boxes, detections.masks, strict=True):
        rows, columns = (labels == label).nonzero().unbind(1)
        assert torch.equal(mask, labels == label)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_areas_of_names():
    names = torch.tensor([[0, 0, 2], [0, 2, 2]])
    areas = Segmentation(("sky", "sea", "dog"), names).to_detections()
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
    "sentence, lead_texts, expected",
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
def test_labels_are_the_words_before_a_tool(sentence, lead_texts, expected):
    assert labels(reply(*((lead, DETECT) for lead in lead_texts)), sentence) == expected


def test_a_grounded_object_is_labelled_with_the_sentence():
    assert labels(reply(("Yes, it is ", GROUND)), " the left dog ") == ["the left dog"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_visionllm(random_visionllm.checkpoint(tmp_path_factory.mktemp("whole") / "VisionLLMv2", mappers=True))


@pytest.fixture
def image():
    return torch.rand(70, 90, 3, generator=torch.Generator().manual_seed(1))


def test_each_tool_runs_its_decoder(loaded, image):
    loaded.load()
    said = reply(
        ("for a", DETECT),
        (", b", DETECT),
        ("it is", GROUND),
        ("sky", SEGMENT),
        ("sea", SEGMENT),
        ("see", GENERATE),
        ("and", EDIT),
    )
    done = run_tools(loaded, image, "a, b, sky, sea", said, Limits(max_detections=5))
    assert not done.notes and done.keypoints is None
    assert done.detections.names == ("a", "b", "a, b, sky, sea", "sky", "sea") and done.detections.masks.shape == (
        len(done.detections),
        70,
        90,
    )
    counts = torch.bincount(done.detections.labels, minlength=5)
    assert counts[:2].sum() == 5 and counts[2] == 1 and counts[3:].max() == 1
    assert (done.detections.scores.diff() <= 0).all()
    assert done.generate.shape == done.edit.shape == (1, 77, 768) and not torch.equal(done.generate, done.edit)


def test_keypoints_belong_to_the_objects_of_the_answer(loaded, image):
    loaded.load()
    done = run_tools(
        loaded,
        image,
        "the nose and tail of the dog",
        reply(("dog", DETECT), ("nose", POSE), ("tail", POSE)),
        Limits(max_detections=3),
    )
    assert (
        done.detections is None
        and done.keypoints.names == ("dog",)
        and done.keypoints.keypoint_names == ("nose", "tail")
    )
    assert done.keypoints.keypoints.shape == (3, 2, 2)
    alone = run_tools(loaded, image, "the nose", reply(("nose", POSE)))
    assert alone.keypoints is None and "no object" in alone.notes[0]


def test_tools_that_cannot_run_are_noted(loaded, image, tmp_path):
    blind = run_tools(loaded, None, "a dog", reply(("dog", DETECT), ("edit", EDIT)))
    assert (
        blind.detections is None
        and blind.edit is None
        and [note.split(":")[0] for note in blind.notes] == ["[DET] was not run", "[EDIT] was not run"]
    )
    plain = load_visionllm(random_visionllm.checkpoint(tmp_path / "plain"))
    assert "no part for it (generate)" in run_tools(plain, image, "draw", reply(("it", GENERATE))).notes[0]


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    """It answers everything with [DET] [DET] [DET] ..."""
    return load_visionllm(random_visionllm.checkpoint(tmp_path_factory.mktemp("eager") / "VisionLLMv2", writes=DETECT))


def test_a_model_that_writes_tools_has_them_run(eager, image):
    done = instruct(eager, image, "find the dog", max_tokens=3, limits=Limits(max_detections=4))
    assert done.reply.text == DETECT * 3 and done.reply.plain_text == "" and len(done.reply.tools) == 3
    assert len(done.detections) == 4 and set(done.detections.names) == {"object"}


def test_a_written_tool_asks_its_decoder_what_a_given_one_does(eager, image):
    (written,) = answer(eager, [image], [chat("find the dog")], max_tokens=1)
    with torch.no_grad():
        (given,) = super_link_states(
            eager, ImageView(eager, image), [Turn(IMAGE_LINE + "find the dog", tool_text(DETECT))]
        )
    assert torch.allclose(written.tools[0].hidden_states, given[0], atol=1e-4)
