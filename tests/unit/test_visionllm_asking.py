"""Asking a whole (random) VisionLLM through the library: what holds whatever it learned, and what bad input gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.visionllm_nodes.model import answers, contexts, in_context, perception, prompt_templates, regions
from mulan_nodes.visionllm_nodes.model.generation import nucleus_sampler
from mulan_nodes.visionllm_nodes.model.prefill import ImageView
from mulan_nodes.visionllm_nodes.model.prefix_cache import PrefixCache
from mulan_nodes.visionllm_nodes.model.prompt_templates import chat
from mulan_nodes.visionllm_nodes.model.region_mentions import place_regions
from mulan_nodes.visionllm_nodes.model.selection import Limits, select
from mulan_nodes.visionllm_nodes.model.visionllm_files import open_visionllm
from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return random_visionllm.checkpoint(tmp_path_factory.mktemp("models") / "VisionLLMv2")


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_visionllm(checkpoint)


@pytest.fixture
def image():
    return torch.from_numpy(np.random.default_rng(3).random((90, 130, 3), dtype=np.float32))


def test_detection_is_ordered_and_within_its_bounds(loaded, image):
    found = perception.detect(loaded, image, ["red circle", "blue square", "star"], max_detections=12)
    assert len(found) == 12 and found.masks.shape == (12, 90, 130) and found.masks.dtype == torch.bool
    assert (found.scores.diff() <= 0).all() and 0 <= found.labels.min() and found.labels.max() < 3
    assert len(perception.detect(loaded, image, ["star"], threshold=1.1)) == 0


def test_negative_names_take_what_they_fit_better(loaded, image):
    names, negative = ["red circle"], ["blue square", "star"]
    everything = perception.detect(loaded, image, names + negative, max_detections=1000, masks=False)
    found = perception.detect(loaded, image, names, negative=negative, max_detections=500, masks=False)
    limits = Limits(max_detections=500, wanted=1)
    expected = everything.select(select(everything, limits))
    assert (found.labels == 0).all() and 0 < len(found) and torch.equal(found.scores, expected.scores[: len(found)])
    with pytest.raises(ValueError, match="star"):
        perception.detect(loaded, image, ["star"], negative=["star"])


def test_names_beyond_one_prompt_are_asked_in_several(loaded, image):
    names = [f"thing {number}" for number in range(300)]
    found = perception.detect(loaded, image, names, max_detections=20, masks=False)
    apart = [
        perception.detect(
            loaded, image, names[first : first + perception.NAMES_PER_PROMPT], max_detections=20, masks=False
        )
        for first in range(0, 300, perception.NAMES_PER_PROMPT)
    ]
    expected = torch.cat([part.scores for part in apart]).sort(descending=True).values[:20]
    assert len(found) == 20 and torch.allclose(found.scores, expected)
    best = max(range(len(apart)), key=lambda number: apart[number].scores[0])
    assert found.labels[0] == apart[best].labels[0] + best * perception.NAMES_PER_PROMPT


@pytest.mark.parametrize(
    "names, words",
    [
        ([], "empty"),
        (["star", " "], "empty"),
        (["star", "dog", "star"], "star"),
        ([f"n{i}" for i in range(90)] + ["n3"], "n3"),
        (["[DET]"], r"\[DET\]"),
    ],
)
def test_lists_of_names_that_cannot_be_asked_about(loaded, image, names, words):
    with pytest.raises(ValueError, match=words):
        perception.detect(loaded, image, names)


@pytest.mark.parametrize("name", ["собака", "꽃", "كرة حمراء", "गेंद", "🐶", "a\u0301 b", "x" * 300])
def test_names_in_any_script(loaded, image, name):
    assert len(perception.detect(loaded, image, [name], max_detections=3)) == 3


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 10000, 3), (90, 130, 4), (90, 130, 1), (90, 130)])
def test_images_of_any_form(loaded, shape):
    found = perception.detect(loaded, torch.rand(shape), ["star"], max_detections=2)
    assert found.size == shape[:2] and found.masks.shape[1:] == shape[:2] and found.boxes.isfinite().all()
    assert perception.pose(loaded, torch.rand(shape), ["person"], ["head"], max_detections=2).keypoints.isfinite().all()
    assert perception.segment(loaded, torch.rand(shape), ["star", "circle"]).labels.shape == shape[:2]


def test_a_image_as_pil_array_or_tensor_is_one_image(loaded):
    array = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    forms = array, Image.fromarray(array), torch.from_numpy(array) / 255
    first, *others = [perception.ground(loaded, form, "the star") for form in forms]
    assert all(torch.equal(first.boxes, other.boxes) for other in others)


def test_a_image_with_no_numbers_is_refused(loaded, image):
    image[3, 3] = float("nan")
    with pytest.raises(ValueError, match="no numbers"):
        perception.ground(loaded, image, "the star")


def test_regions(loaded, image):
    size = loaded.settings.tower
    marks = torch.cat(
        (
            regions.masks_from_boxes(torch.tensor([[10.0, 10, 50, 60]]), 90, 130, size),
            regions.masks_from_masks(torch.ones(1, 7, 9), size),
        )
    )[:, 0]
    found = perception.detect_at_regions(loaded, image, marks)
    assert len(found) == 2 and found.labels.tolist() == [0, 1] and found.names == ("region1", "region2")
    alone = perception.detect_at_regions(loaded, image, marks[:1])
    assert not torch.equal(alone.scores, perception.detect_at_regions(loaded, image, marks[1:]).scores)
    with pytest.raises(ValueError, match="empty"):
        regions.masks_from_masks(torch.zeros(1, 90, 130), size)
    with pytest.raises(ValueError, match="no region"):
        perception.detect_at_regions(loaded, image, marks[:0])


def test_each_region_is_read_in_its_own_example(loaded, image):
    size, limits = loaded.settings.tower, Limits(max_detections=4)
    other = image.flip(1)[:60].contiguous()
    whole = regions.masks_from_boxes(torch.tensor([[0.0, 0, 129, 89]]), 90, 130, size)[0]
    corner = regions.masks_from_boxes(torch.tensor([[0.0, 0, 20, 20]]), 90, 130, size)[0]

    def find(examples, marks):
        return in_context.detect_like_examples(loaded, image, examples, torch.cat(marks), limits)

    found = find([other, image], [whole, corner])
    assert set(found.names) == {"example"} and found.size == (90, 130) and found.masks.shape == (4, 90, 130)
    assert torch.equal(found.scores, find([other, image], [whole, corner]).scores)
    for examples, marks in (
        ([other, image], [corner, whole]),
        ([image, other], [whole, corner]),
        ([other, image], [whole, whole]),
        ([other], [whole]),
    ):
        assert not torch.equal(found.scores, find(examples, marks).scores)
    with pytest.raises(ValueError, match="no examples"):
        find([], [whole[:0]])


def test_a_question_about_regions_is_about_those_in_their_order(loaded, image):
    """What the language model reads of two regions: each its own, and exchanged where their names are."""
    marks = regions.masks_from_boxes(
        torch.tensor([[10.0, 10, 50, 60], [70, 5, 120, 80]]), 90, 130, loaded.settings.tower
    )
    marks = marks[:, 0]

    def logits(question: str, of_regions: torch.Tensor) -> torch.Tensor:
        seen = []
        turns, named = place_regions(prompt_templates.chat(question), len(of_regions))
        answers.answer(
            loaded,
            [image],
            [turns],
            region_masks=of_regions[named],
            max_tokens=1,
            sampler=lambda logits: (seen.append(logits), logits.argmax(-1))[1],
        )
        return seen[0]

    both = logits("Is region1 left of region2?", marks)
    assert torch.equal(both, logits("Is region1 left of region2?", marks))
    assert not torch.allclose(both, logits("Is region1 left of region2?", marks.flip(0)))
    assert not torch.allclose(both, logits("Is region2 left of region1?", marks))
    assert not torch.allclose(logits("What is region1?", marks), logits("What is region1?", marks.flip(0)))


def test_what_stands_out_and_what_hides_are_two_questions(loaded, image):
    first, second = (perception.detect_salient(loaded, image, "it", camouflaged=hides) for hides in (False, True))
    assert len(first) == len(second) == 1 and first.names == ("it",) and first.masks.shape == (1, 90, 130)
    assert not torch.equal(first.scores, second.scores)


def test_a_region_is_read_in_the_image_that_marks_it(loaded, image, monkeypatch):
    examples, seen = [image.flip(0), image.flip(1)], []
    encode = loaded.model.encode_regions
    monkeypatch.setattr(
        loaded.model, "encode_regions", lambda view, *rest: seen.append(view.float()) or encode(view, *rest)
    )
    marks = torch.ones(2, loaded.settings.tower, loaded.settings.tower, dtype=torch.bool)
    in_context.detect_like_examples(loaded, image, examples, marks, Limits(max_detections=1))
    for view, example in zip(seen, examples, strict=True):
        assert torch.allclose(view.cpu(), ImageView(loaded, example).views[-1].float(), atol=1e-2)


def test_a_checkpoint_without_regions_says_so(loaded, image, monkeypatch):
    monkeypatch.setitem(loaded.model._modules, "region_encoder", None)
    marks = torch.ones(1, loaded.settings.tower, loaded.settings.tower, dtype=torch.bool)
    with pytest.raises(ValueError, match="has no region encoder"):
        answers.answer(loaded, [image], [[prompt_templates.region_caption()]], region_masks=marks)


def test_pose(loaded, image):
    found = perception.pose(loaded, image, ["person", "dog"], ["head", "left foot", "tail"], max_detections=4)
    assert found.keypoints.shape == (4, 3, 2) and found.keypoint_names == ("head", "left foot", "tail")
    with pytest.raises(ValueError, match="at most 68"):
        perception.pose(loaded, image, ["person"], [f"point {number}" for number in range(69)])


def test_a_second_question_equals_a_fresh_one(checkpoint, loaded, image):
    loaded.prefix_cache.clear()
    perception.ground(loaded, image, "the star")
    second = perception.detect(loaded, image, ["red circle"], max_detections=5)
    assert len(loaded.prefix_cache) == 1
    fresh = perception.detect(load_visionllm(checkpoint), image, ["red circle"], max_detections=5)
    assert torch.allclose(second.scores, fresh.scores, atol=1e-5) and torch.allclose(
        second.boxes, fresh.boxes, atol=1e-3
    )


def test_the_image_is_read_once(loaded, image, monkeypatch):
    loaded.prefix_cache.clear()
    passes = []
    forward = loaded.model.language.forward
    monkeypatch.setattr(
        loaded.model.language,
        "forward",
        lambda embeddings, *rest, **kw: passes.append(embeddings.shape[1]) or forward(embeddings, *rest, **kw),
    )
    monkeypatch.setattr(
        loaded.model.language, "logits", lambda states: pytest.fail("a question of perception needs no words")
    )
    perception.ground(loaded, image, "the star")
    first, passes[:] = list(passes), []
    perception.ground(loaded, image, "the dog")
    assert len(first) == 2 and len(passes) == 1 and passes[0] < first[0]


def test_memory_is_bounded_and_freed_by_comfyui(loaded, image):
    import comfy.model_management

    loaded.prefix_cache.clear()
    loaded.prefix_cache = PrefixCache(max_bytes=0)
    for number in range(3):
        perception.ground(loaded, (image + number / 7) % 1, "the star")
    assert len(loaded.prefix_cache) == 1
    comfy.model_management.unload_all_models()
    assert len(loaded.prefix_cache) == 0


def test_answers_side_by_side_equal_each_alone(loaded, image):
    questions = [chat("what is it?"), chat("and how many of them are there, and of what colour?"), chat("why?")]
    together = answers.answer(loaded, [image], questions, max_tokens=20)
    assert [reply.text for reply in together] == [
        answers.answer(loaded, [image], [question], max_tokens=20)[0].text for question in questions
    ]
    assert all(reply.text and not reply.finished for reply in together)


def test_sampled_answers_are_seeded_and_greedy_ones_repeat(loaded, image):
    def said(**how):
        return answers.answer(loaded, [image], [chat("what is it?")], max_tokens=20, **how)[0].text

    assert said() == said()
    assert (
        said(sampler=nucleus_sampler(1.5, 0.95, 1))
        == said(sampler=nucleus_sampler(1.5, 0.95, 1))
        != said(sampler=nucleus_sampler(1.5, 0.95, 2))
    )


def test_texts_grow_token_by_token(loaded, image):
    seen = []
    (reply,) = answers.answer(
        loaded, [image], [chat("what is it?")], max_tokens=15, on_text=lambda texts: seen.append(texts[0])
    )
    assert len(seen) == 15 and seen[-1] == reply.text and len(set(seen)) > 5


def test_chat_without_a_image_with_two_and_with_history(loaded, image):
    assert answers.answer(loaded, [], [chat("hello", with_image=False)], max_tokens=4)[0].text
    two = [prompt_templates.Turn("<image>\n<image>\nwhich is larger?")]
    assert answers.answer(loaded, [image, image], [two], max_tokens=4)[0].text
    assert answers.answer(loaded, [image], [chat("and now?", [("what is it?", "a star")])], max_tokens=4)[0].text
    with pytest.raises(ValueError, match="1 <image>"):
        answers.answer(loaded, [], [chat("what is it?")])


def test_an_answer_can_be_interrupted(loaded, image):
    import comfy.model_management

    written = []

    def stop(texts):
        written.append(texts)
        if len(written) == 3:
            comfy.model_management.interrupt_current_processing(True)

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        answers.answer(loaded, [image], [chat("what is it?")], max_tokens=50, on_text=stop)
    assert len(written) == 3
    assert answers.answer(loaded, [image], [chat("what is it?")], max_tokens=3)[0].text


def test_parts_missing_from_the_checkpoint_are_named(loaded, image):
    with pytest.raises(ValueError, match="no mapper to Stable Diffusion"):
        contexts.generation_context(loaded, "a cat")
    with pytest.raises(ValueError, match="no mapper to InstructPix2Pix"):
        contexts.editing_context(loaded, image, "make it blue")


def test_checkpoints_that_are_not_the_models(checkpoint, tmp_path):
    def copy(**changes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for file in checkpoint.iterdir():
            (folder / file.name).write_bytes(changes.get(file.name.split(".")[0], file.read_bytes()))
        return folder

    whole = (checkpoint / "model.safetensors").read_bytes()
    with pytest.raises(WrongFileError, match="cut short or damaged"):
        open_visionllm(copy(model=whole[: len(whole) // 2]))
    with pytest.raises(WrongFileError, match="is not a VisionLLM v2 checkpoint"):
        folder = copy()
        save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
        open_visionllm(folder)
    with pytest.raises(WrongFileError, match="incomplete.*gdino.model.level_embed|incomplete.*norm"):
        folder = copy()
        tensors = load_file(checkpoint / "model.safetensors")
        del tensors["gdino.model.decoder.layer_norm.weight"]
        save_file(tensors, folder / "model.safetensors")
        open_visionllm(folder)
    with pytest.raises(WrongFileError, match="not a sentencepiece model"):
        open_visionllm(copy(tokenizer=b"nonsense")).tokenizer()
    with pytest.raises(WrongFileError, match="another model's|belongs to another"):
        open_visionllm(copy(tokenizer=random_visionllm.sentencepiece_model(340))).tokenizer()
    with pytest.raises(WrongFileError, match="not valid JSON"):
        open_visionllm(copy(config=b"{"))
    folder = copy()
    (folder / "tokenizer.model").unlink()
    with pytest.raises(WrongFileError, match="has no tokenizer"):
        open_visionllm(folder).tokenizer()
