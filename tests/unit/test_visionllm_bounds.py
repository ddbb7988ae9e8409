"""What VisionLLM does with too many and too long names, regions, questions and images, and with Stop."""

from __future__ import annotations

import time

import comfy.model_management
import pytest
import torch

from mulan_nodes.mulan.boundary import limits
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.visionllm_nodes import node_io, region_prompts
from mulan_nodes.visionllm_nodes.model import answers, contexts, language_model, perception, prefill, prompt_templates
from mulan_nodes.visionllm_nodes.model.generation import nucleus_sampler
from mulan_nodes.visionllm_nodes.model.image_inputs import grounding_image, pose_image, tower_images
from mulan_nodes.visionllm_nodes.model.selection import Limits
from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_visionllm(random_visionllm.checkpoint(tmp_path_factory.mktemp("models") / "VisionLLMv2", mappers=True))


@pytest.fixture(scope="module")
def image():
    return torch.rand(90, 130, 3, generator=torch.Generator().manual_seed(3))


def marks_of(loaded, count):
    boxes = [{"x": float(index % 100), "y": float(index % 70), "width": 20.0, "height": 15.0} for index in range(count)]
    (regions,) = region_prompts.regions_per_image([(90, 130)], loaded.settings.tower, bboxes=boxes)
    return regions.marks


# --- several prompts instead of one ---


def test_many_regions_are_asked_about_in_several_prompts(loaded, image):
    per_prompt = perception.NAMES_PER_PROMPT
    marks = marks_of(loaded, per_prompt + 5)
    found = perception.detect_at_regions(loaded, image, marks)
    first, second = (perception.detect_at_regions(loaded, image, part) for part in marks.split(per_prompt))
    assert found.labels.tolist() == list(range(per_prompt + 5)) and found.names[-1] == f"region{per_prompt + 5}"
    assert torch.equal(found.boxes, torch.cat([first.boxes, second.boxes]))
    assert torch.equal(found.scores, torch.cat([first.scores, second.scores]))
    assert torch.equal(found.masks, torch.cat([first.masks, second.masks]))


def test_similar_objects_of_several_prompts_are_one_result_within_the_limits(loaded, image):
    per_prompt = perception.NAMES_PER_PROMPT
    marks, limits_of_one = marks_of(loaded, per_prompt + 5), Limits(12, iou_threshold=0.7, class_agnostic=True)
    found = perception.detect_similar(loaded, image, marks, limits_of_one)
    parts = [perception.detect_similar(loaded, image, part, limits_of_one) for part in marks.split(per_prompt)]
    assert len(found) <= 12 and found.masks.shape == (len(found), 90, 130) and (found.scores.diff() <= 0).all()
    assert found.scores[0] == max(part.scores[0] for part in parts)


# --- limits, which their errors state ---


@pytest.mark.parametrize(
    "names, words",
    [
        ([f"thing {index}" for index in range(limits.MAX_NAMES + 1)], "there are 2001 names, and at most 2000"),
        (["e" + "\u0301" * 100_000], "is 100001 characters long, and at most 1000"),
        (["dog", "x" * 1001], "is 1001 characters long"),
    ],
)
def test_names_beyond_the_limits(loaded, image, names, words):
    with pytest.raises(ValueError, match=words):
        perception.detect(loaded, image, names)
    with pytest.raises(ValueError, match=words):
        perception.segment(loaded, image, names)
    with pytest.raises(ValueError, match=f"names: .*{words}"):
        node_io.parse_names("names", "\n".join(names))


@pytest.mark.parametrize("count, words", [(20_000, "at most 131072 are read"), (3000, "at most 8192 are read")])
def test_questions_beyond_the_limits(loaded, image, count, words):
    question = "a b c d " * count
    for ask in (
        lambda: answers.answer(loaded, [image], [prompt_templates.chat(question)], max_tokens=1),
        lambda: answers.answer(loaded, [], [prompt_templates.chat(question, with_image=False)], max_tokens=1),
        lambda: perception.ground(loaded, image, question, reasoning=True),
        lambda: contexts.generation_context(loaded, question),
        lambda: contexts.editing_context(loaded, image, question),
        lambda: perception.pose(loaded, image, [question], ["nose"]),
    ):
        with pytest.raises(ValueError, match=words):
            ask()


def test_images_beyond_the_limit(loaded, monkeypatch):
    monkeypatch.setattr(prefill, "MAX_CONTEXT_TOKENS", 50)
    turn = prompt_templates.Turn(prompt_templates.IMAGE_LINE * 20 + "?")
    with pytest.raises(ValueError, match="20 images take .* tokens, and at most 50 are read together"):
        answers.answer(loaded, [torch.rand(30, 30, 3)] * 20, [[turn]], max_tokens=1)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"bboxes": [{"x": 1, "y": 1, "width": 5, "height": 5}] * 3000}, "bboxes: 3000 regions, and at most 1000"),
        ({"points": str([{"x": 1, "y": 1}] * 1001).replace("'", '"')}, "points: 1001 regions"),
        ({"mask": torch.ones(1, 1, 1).expand(5000, 64, 64)}, "mask: 5000 regions"),
        (
            {"mask": torch.ones(999, 4, 4), "bboxes": [{"x": 1, "y": 1, "width": 5, "height": 5}] * 2},
            "mask, bboxes: 1001 regions",
        ),
    ],
)
def test_regions_beyond_the_limit(given, words):
    with pytest.raises(ValueError, match=words):
        region_prompts.regions_per_image([(64, 64)], 56, **given)


def test_regions_of_images_of_different_sizes():
    boxes = [[{"x": 1, "y": 2, "width": 3, "height": 4}], [], [{"x": 50, "y": 20, "width": 9, "height": 9}] * 2]
    found = region_prompts.regions_per_image([(8, 9), (30, 5), (64, 96)], 56, bboxes=boxes)
    assert [len(of_image) for of_image in found] == [1, 0, 2]
    assert [of_image.masks.shape[1:] for of_image in found] == [(8, 9), (30, 5), (64, 96)]
    assert found[2].boxes[0].tolist() == [50, 20, 59, 29] and found[2].marks[0].any()


def test_regions_whose_masks_would_not_fit_in_memory():
    box = {"x": 1, "y": 1, "width": 5, "height": 5}
    with pytest.raises(ValueError, match=r"bboxes: 900 masks of 8000 x 8000 pixels .* at most"):
        region_prompts.regions_per_image([(8000, 8000)], 56, bboxes=[box] * 900)
    with pytest.raises(ValueError, match="bboxes: "):
        region_prompts.regions_per_image([(8, 8)] * 100_000, 336, bboxes=[box] * 900)


def test_a_batch_whose_masks_would_not_fit_in_memory(monkeypatch, loaded, image):
    monkeypatch.setattr(node_io, "MAX_MASK_PIXELS", 90 * 130 * 7)
    with pytest.raises(ValueError, match="image: the masks of the first 3 images have .* at most"):
        node_io.for_each_image([image] * 5, lambda one: perception.detect(loaded, one, ["star"], max_detections=3))


@pytest.mark.parametrize("text", ['[{"x": 1e999, "y": 1}]', f'[{{"x": {10**400}, "y": 1}}]', '[{"x": NaN, "y": 1}]'])
def test_points_that_are_no_numbers(text):
    with pytest.raises(ValueError, match="points: "):
        region_prompts.parse_points(text)


def test_points_nested_deep():
    with pytest.raises(ValueError, match="points: not valid JSON"):
        region_prompts.parse_points("[" * 100_000)


# --- text ---


def test_half_a_character_is_one_that_is_unknown(loaded, image):
    halved = perception.detect(loaded, image, ["a\ud83d b"], max_detections=3, masks=False)
    assert torch.equal(
        halved.boxes, perception.detect(loaded, image, ["a\ufffd b"], max_detections=3, masks=False).boxes
    )
    assert contexts.generation_context(loaded, "\ud83d\ude00").equal(contexts.generation_context(loaded, "😀"))


# --- reading in parts ---


def test_a_long_prompt_is_read_in_parts_with_the_same_result(loaded, image, monkeypatch):
    """The attention's mask has as many rows as tokens are read at a time."""
    asked = dict(max_detections=5, masks=False)
    whole = perception.detect(loaded, image, ["red circle", "star"], **asked)
    written = answers.answer(loaded, [image], [prompt_templates.chat("What is it?")], max_tokens=6)
    rows, bias = [], language_model.causal_bias
    monkeypatch.setattr(language_model, "PREFILL_TOKENS", 7)
    monkeypatch.setattr(
        language_model, "causal_bias", lambda length, count, like: rows.append(count) or bias(length, count, like)
    )
    loaded.prefix_cache.clear()
    parts = perception.detect(loaded, image, ["red circle", "star"], **asked)
    assert max(rows) == 7 and len(rows) > 3
    assert torch.allclose(whole.boxes, parts.boxes, atol=1e-2) and torch.allclose(whole.scores, parts.scores, atol=1e-5)
    assert answers.answer(loaded, [image], [prompt_templates.chat("What is it?")], max_tokens=6)[0] == written[0]
    loaded.prefix_cache.clear()


# --- sampling ---


@pytest.mark.parametrize("temperature, top_p", [(float("nan"), 0.9), (float("inf"), 0.9), (-1.0, 0.9), (1.0, 0.0)])
def test_sampling_that_is_not_possible(temperature, top_p):
    with pytest.raises(ValueError, match="temperature must|top_p must"):
        nucleus_sampler(temperature, top_p, 0)


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-45, 1e-8])
def test_hardly_any_temperature_is_none(temperature):
    logits = torch.tensor([[1.0, 80.0, 3.0]])
    assert nucleus_sampler(temperature, 1.0, 2**64 - 1)(logits).tolist() == [1]


# --- extreme images ---


@pytest.mark.parametrize("height, width", [(1, 1), (3, 2000), (2000, 3), (1, 16384), (16384, 1), (1_000_000, 1)])
def test_images_of_any_shape_are_prepared(loaded, height, width):
    image, settings = torch.rand(1, 1, 3).expand(height, width, 3), loaded.settings
    assert tower_images(image, settings).shape[1:] == (3, settings.tower, settings.tower)
    for prepared in (grounding_image(image, settings), grounding_image(image, settings, semantic=True)):
        assert max(prepared.shape[1:]) <= max(settings.long, settings.semantic_long)
    assert max(pose_image(image, settings).shape[1:]) <= settings.long


# --- Stop ---


@pytest.mark.parametrize("what", ["names", "regions", "similar", "masks of regions"])
def test_stop_stops_within_half_a_second(loaded, image, stop_soon, what):
    timer, pressed = stop_soon
    names, marks = [f"thing {index}" for index in range(2000)], marks_of(loaded, 900)
    masks = torch.ones(1, 1, 1).expand(900, 1000, 1000)
    run = {
        "names": lambda: perception.detect(loaded, image, names),
        "regions": lambda: perception.detect_at_regions(loaded, image, marks),
        "similar": lambda: perception.detect_similar(loaded, image, marks, Limits()),
        "masks of regions": lambda: region_prompts.regions_per_image([(1000, 1000)], 336, mask=masks),
    }[what]
    timer.start()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run()
    assert time.monotonic() - pressed[0] < 0.5 * 4  # a busy machine takes its time
