"""The tiny VisionLLM's world: boxes, masks and corners are those of the drawing, sentences are unambiguous, losses are
least at the truth.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mulan_nodes.tools.tinyworld.world import HELD_OUT, PALETTE, Thing
from mulan_nodes.tools.tinyworld_visionllm import descriptions, evaluation, losses, questions, scenes, vocabulary
from mulan_nodes.tools.tinyworld_visionllm.batches import IGNORED, RowMaker, region_mask
from mulan_nodes.tools.tinyworld_visionllm.descriptions import Description
from mulan_nodes.tools.tinyworld_visionllm.evaluation import Found
from mulan_nodes.tools.tinyworld_visionllm.reader_training import patch_contents
from mulan_nodes.tools.tinyworld_visionllm.seeing_training import wanted
from mulan_nodes.visionllm_nodes.model import special_tokens
from mulan_nodes.visionllm_nodes.model.prompt_templates import VICUNA


def some_scenes(count=40, seed=3):
    rng = np.random.default_rng(seed)
    return [scenes.draw_scene(rng, scenes.SEEN) for _ in range(count)], rng


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary.tokenizer_of(vocabulary.train_tokenizer())


def test_boxes_and_corners_are_those_of_the_mask():
    for scene in some_scenes()[0]:
        for item in scene.items:
            rows, columns = np.nonzero(item.mask)
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            # A tip is thinner than a pixel before it ends.
            assert abs(seen - item.box).max() < (3.0 if item.thing.shape == "star" else 2.0), item
            assert len(item.keypoints) == len(scenes.KEYPOINTS[item.thing.shape])
            inside = item.keypoints + 0.2 * (np.array([item.x, item.y]) - item.keypoints)
            assert item.mask[inside[:, 1].astype(int), inside[:, 0].astype(int)].all(), item


def test_keypoints_are_named_by_where_they_are():
    item = scenes.Item(Thing("red", "square", "big"), 60.0, 60.0, 20.0, 5.0)
    named = dict(zip(scenes.KEYPOINTS["square"], item.keypoints, strict=True))
    assert named["top left corner"][0] < 60 and named["top left corner"][1] < 60
    assert named["bottom right corner"][0] > 60 and named["bottom right corner"][1] > 60
    for shape, names in scenes.KEYPOINTS.items():
        points = scenes.Item(Thing("red", shape, "big"), 60.0, 60.0, 20.0, 0.0).keypoints - 60
        for name, (x, _) in zip(names, points, strict=True):
            assert ("left" in name) == (x < -1) and ("right" in name) == (x > 1), (shape, name)


def test_pixels_have_the_colour_of_their_shape():
    for scene in some_scenes()[0]:
        for item in scene.items:
            apart = abs(scene.picture[item.mask].astype(float) - PALETTE[item.thing.colour]).max(axis=1)
            assert np.median(apart) <= 13, item


def test_shapes_do_not_touch_and_held_out_pairs_are_not_drawn():
    for scene in some_scenes()[0]:
        assert not (np.stack([item.mask for item in scene.items]).sum(axis=0) > 1).any()
        assert not any((item.thing.colour, item.thing.shape) in HELD_OUT for item in scene.items)


def test_a_sentence_fits_one_shape():
    drawn, rng = some_scenes()
    for scene in drawn:
        described = descriptions.referring(scene, rng)
        (found,) = described.found(scene)
        item = scene.items[found]
        if not described.side:
            assert (
                described.name in f"{item.thing.size} {item.thing.colour} {item.thing.shape} shape"
                or described.name.split()[-1] == "shape"
                or set(described.name.split()) <= {item.thing.size, item.thing.colour, item.thing.shape}
            )
        else:
            others = [
                other
                for other in scene.items
                if other is not item
                and Description(described.colour, described.shape, described.size).found(
                    scenes.Scene(scene.picture, (other,))
                )
            ]
            axis = "x" if described.side in ("left", "right") else "y"
            gaps = [getattr(other, axis) - getattr(item, axis) for other in others]
            assert others and all(
                gap >= descriptions.CLEARLY if described.side in ("left", "top") else -gap >= descriptions.CLEARLY
                for gap in gaps
            )


def test_training_never_says_a_held_out_pair():
    drawn, rng = some_scenes(20)
    said = [f"{colour} {shape}" for colour, shape in HELD_OUT]
    for scene in drawn:
        for ask in questions.TASKS.values():
            for _ in range(5):
                turn = ask(scene, rng).turn
                assert not any(pair in turn.user + turn.assistant for pair in said), turn


@pytest.mark.parametrize("task", questions.TASKS)
def test_answers_call_as_many_tools_as_there_are_things_to_find(task):
    drawn, rng = some_scenes(20)
    for scene in drawn:
        exercise = questions.TASKS[task](scene, rng)
        calls = sum(exercise.turn.assistant.count(tool) for tool in special_tokens.TOOLS)
        assert calls == len(exercise.found) + len(exercise.keypoints) and len(exercise.meant) == len(exercise.found)
        assert exercise.turn.user.count(special_tokens.REGION) == len(exercise.regions)


def test_rows_join_to_the_whole_prompt_and_label_the_answer(tokenizer):
    maker = RowMaker(tokenizer)
    drawn, rng = some_scenes(5)
    embeddings = {tokenizer.ids[name] for name in special_tokens.EMBEDDINGS}
    for scene in drawn:
        for ask in questions.TASKS.values():
            exercise = ask(scene, rng)
            row = maker.row(exercise)
            assert maker.opening + row.ids == tokenizer.encode(VICUNA.prompt([exercise.turn]), 64)
            labelled = [label for label in row.labels if label != IGNORED]
            answer = tokenizer.encode(exercise.turn.assistant, bos=False)
            assert labelled[-1] == tokenizer.eos and not set(labelled) & embeddings
            assert len(labelled) == sum(id not in embeddings for id in answer) + 1
            assert all(row.ids[link.start - 1] == tokenizer.ids[link.tool] for link in row.links)


def test_the_tokenizer_knows_the_words_of_its_questions(tokenizer):
    assert len(tokenizer) == vocabulary.PIECES + len(special_tokens.ADDED)
    for text in ("What colour is the leftmost star?", "un gran círculo rojo", "红色的大圆形"):
        assert tokenizer.decode(tokenizer.encode(text, bos=False)) == text


def test_a_region_lies_on_its_shape():
    drawn, rng = some_scenes(20)
    for scene in drawn:
        for number, item in enumerate(scene.items):
            mask = region_mask(scene, number, rng)
            rows, columns = np.nonzero(mask)
            x, y = (columns.mean() + 0.5) * 128 / 112, (rows.mean() + 0.5) * 128 / 112
            assert mask.any() and item.box[0] - 2 <= x <= item.box[2] + 2 and item.box[1] - 2 <= y <= item.box[3] + 2


def test_patches_hold_what_covers_them():
    scene = some_scenes(1)[0][0]
    contents = patch_contents(scene).reshape(8, 8, 4)
    assert contents[..., 3].sum() == len({(int(item.y / 16), int(item.x / 16)) for item in scene.items})
    assert all(contents[int(item.y / 16), int(item.x / 16), 3] == 1 for item in scene.items)


def targets():
    drawn, rng = some_scenes(4)
    return wanted(drawn, [questions.detection(scene, rng) for scene in drawn])


def test_losses_vanish_at_the_truth():
    target = targets()
    logits = torch.where(target.labels > 0, 30.0, -30.0)  # query n is object n
    pairs = losses.match(logits, target.boxes, target.labels, target.boxes, target.present)
    assert pairs[1].tolist() == pairs[2].tolist() and len(pairs[0]) == int(target.present.sum())
    assert losses.detection(logits, target.boxes, target.labels, target.boxes, pairs) < 1e-5
    masks = torch.zeros(2, 32, 32)
    masks[:, 8:16, 8:24] = 1
    whole = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    right, wrong = losses.masks(60 * masks - 30, whole), losses.masks(30 - 60 * masks, whole)
    assert right < 0.3 * wrong
    points = torch.rand(3, 4, 2)
    assert losses.keypoints(points, points, torch.rand(3, 4), torch.ones(3, 4)) == 0


def test_each_object_gets_its_own_query():
    target = targets()
    torch.manual_seed(0)
    logits, boxes = torch.randn(4, 30, target.labels.shape[2]), torch.rand(4, 30, 4)
    for times in (1, 3):
        pictures, queries, _ = losses.match(logits, boxes, target.labels, target.boxes, target.present, times)
        assert (
            len(set(zip(pictures.tolist(), queries.tolist(), strict=True)))
            == len(pictures)
            == times * int(target.present.sum())
        )


def test_absent_names_lose_nothing():
    logits = torch.full((1, 2, 3), -torch.inf, requires_grad=True)
    loss = losses.focal(logits, torch.zeros(1, 2, 3)).sum()
    loss.backward()
    assert loss < 1e-9 and torch.isfinite(logits.grad).all()


def test_generalized_iou():
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    assert losses.generalized_iou(box, box) == pytest.approx(1)
    assert losses.generalized_iou(box, torch.tensor([0.7, 0.5, 0.2, 0.2])) == pytest.approx(0, abs=1e-6)  # side by side
    assert losses.generalized_iou(torch.tensor([0.1, 0.5, 0.2, 0.2]), torch.tensor([0.9, 0.5, 0.2, 0.2])) < -0.5


def test_average_precision():
    truth = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], float)
    right, wrong = Found(truth, np.array([0.9, 0.8]), truth), Found(truth + 50, np.array([0.9, 0.8]), truth)
    twice = Found(np.concatenate([truth, truth]), np.array([0.9, 0.8, 0.7, 0.6]), truth)
    assert evaluation.average_precision([right]) == 1 and evaluation.average_precision([wrong]) == 0
    assert evaluation.average_precision([twice]) == 1  # what is found again comes behind
    half = Found(np.concatenate([truth[:1], truth[:1] + 50]), np.array([0.8, 0.9]), truth[:1])
    assert evaluation.average_precision([half]) == pytest.approx(0.5)
    nothing = Found(np.empty((0, 4)), np.empty(0), truth)
    assert evaluation.average_precision([right, nothing]) == pytest.approx(51 / 101)
    assert np.isnan(evaluation.average_precision([Found(truth, np.ones(2), np.empty((0, 4)))]))


def test_other_scores():
    box = np.array([[0.0, 0, 10, 10]])
    assert evaluation.box_accuracy(box, box) == 1 and evaluation.box_accuracy(box + 6, box) == 0
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    assert evaluation.mask_overlap(mask, mask) == 1 and evaluation.mask_overlap(mask, ~mask) == 0
    points = np.array([[1.0, 1.0], [5.0, 5.0]])
    assert evaluation.keypoint_accuracy(points + [0.9, 0], points, box[0]).all()
    assert not evaluation.keypoint_accuracy(points + [1.1, 0], points, box[0]).any()
    assert evaluation.exact_match(" Red. ", "red") and not evaluation.exact_match("dark red", "red")


def test_the_packed_model_sees(tiny_models):
    from mulan_nodes.tools.tinyworld_visionllm import examination
    from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

    loaded = load_visionllm(tiny_models["tiny_visionllm.safetensors"], device="cpu")
    found = examination.examine(loaded, examination.held_out_scenes(20)).scores
    few = 0.06  # twenty pictures tell no more
    assert all(found[name] >= goal - few for name, goal in examination.GOALS.items()), found
