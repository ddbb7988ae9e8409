"""Upstream's post-processing of detection, grounding, regions, semantic segmentation and pose, tensor by tensor."""

from __future__ import annotations

import re

import pytest
import torch

from mulan_nodes.visionllm_nodes.model.postprocess import (
    TopQueries,
    boxes_in_pixels,
    instance_masks,
    keypoints_in_pixels,
    semantic_map,
    top_per_prompt,
    top_queries,
)

SCORE, SIDE = 1e-6, 1e-5  # of the image's longer side
GOLDEN = pytest.mark.golden("postprocess")


@pytest.fixture(scope="module")
def case(golden):
    return golden


def boxes_of(case, key: str, batch: int, queries: int) -> torch.Tensor:
    drawn = case.uniform(f"input:{key}", (batch, queries, 4)).float()
    return torch.cat((drawn[..., :2] * 0.8 + 0.1, drawn[..., 2:] * 0.5 + 0.02), -1)


@pytest.fixture(scope="module")
def given(case):
    """The decoder's answers, and per image what it was shown and how large it is."""
    facts = case.facts["inputs"]
    masks = case.stored["raw_masks"]
    batch, queries = masks.shape[:2]
    answers = {
        "logits": case.inputs("post.logits", (batch, queries, facts["K"]), 2.0, -2.0),
        "boxes": boxes_of(case, "post.boxes", batch, queries),
        "masks": masks,
    }
    images = [
        {name: tensor[row] for name, tensor in answers.items()}
        | {"shown": tuple(facts["img_shape"][row]), "size": tuple(facts["ori_shape"][row][:2])}
        for row in range(batch)
    ]
    assert [4 * side for side in masks.shape[2:]] == facts["pad_shape"]
    return images


def same_found(case, found: TopQueries, name: str, close):
    close(found.scores, case.stored[f"{name}_scores"], "postprocess scores", SCORE)
    assert torch.equal(found.labels, case.stored[f"{name}_labels"]), name


def same_masks(ours: torch.Tensor, golden: torch.Tensor, name: str):
    """A pixel whose logit is within rounding of 0 may fall on either side."""
    assert ours.shape == golden.shape and ours.dtype == torch.bool, name
    assert (ours != golden).float().mean() <= 1e-4, f"{name}: {(ours != golden).sum()} pixels of {golden.numel()}"


@GOLDEN
def test_detection_and_instance_masks(case, given, close):
    for row, image in enumerate(given):
        found = top_queries(image["logits"], case.facts["inputs"]["topk"])
        boxes = boxes_in_pixels(image["boxes"][found.queries], image["size"])
        for kind in ("det", "inst"):
            same_found(case, found, f"{kind}{row}", close)
            close(boxes, case.stored[f"{kind}{row}_boxes"], "postprocess boxes", SIDE * max(image["size"]))
        masks = instance_masks(image["masks"][found.queries], image["shown"], image["size"])
        same_masks(masks, case.stored[f"inst{row}_masks"], f"inst{row}")


@GOLDEN
def test_a_masked_name_is_never_found(case, given, close):
    """Upstream's logits are padded with -inf to 256 columns; ours need not be; with or without, the result is equal."""
    for row, image in enumerate(given):
        logits = image["logits"]
        wide = torch.cat((logits, logits.new_full((len(logits), 7), float("-inf"))), 1)
        same_found(case, top_queries(wide, case.facts["inputs"]["topk"]), f"det{row}", close)
        assert len(top_queries(wide, wide.numel()).scores) == logits.numel()


@GOLDEN
def test_grounding(case, given, close):
    """One name: upstream's golden is the first of the names' columns."""
    for row, image in enumerate(given):
        found = top_queries(image["logits"][:, :1], 1)
        close(found.scores, case.stored[f"grd{row}_score"], "postprocess scores", SCORE)
        close(
            boxes_in_pixels(image["boxes"][found.queries], image["size"]),
            case.stored[f"grd{row}_box"],
            "postprocess boxes",
            SIDE * max(image["size"]),
        )
        masks = instance_masks(image["masks"][found.queries], image["shown"], image["size"])
        same_masks(masks, case.stored[f"grd{row}_mask"], f"grd{row}")


@GOLDEN
def test_interactive(case, given, close):
    for row, image in enumerate(given):
        found = top_per_prompt(image["logits"])
        close(found.scores, case.stored[f"interactive{row}_scores"], "postprocess scores", SCORE)
        masks = instance_masks(image["masks"][found.queries], image["shown"], image["size"])
        same_masks(masks, case.stored[f"interactive{row}_masks"], f"interactive{row}")


@GOLDEN
def test_semantic_map(case, given):
    for row, image in enumerate(given):
        names = semantic_map(image["logits"], image["masks"], image["shown"], image["size"])
        for kind in ("semseg", "semseg_after"):
            if f"{kind}{row}" not in case.stored:
                continue
            golden = case.stored[f"{kind}{row}"].long()
            assert names.shape == golden.shape
            assert (names != golden).float().mean() <= 1e-4, f"{kind}{row}: {(names != golden).sum()} pixels"


@GOLDEN
def test_pose(case, given, close):
    facts = case.facts["inputs"]
    golden, mapping = facts["pose"], {int(label): id for label, id in facts["pose"]["id_mapping"].items()}
    batch = len(given)
    queries, numbers = map(int, re.search(r"\(B,(\d+),(\d+)\)", golden["keypoints"]).groups())
    logits = case.inputs("post.pose_logits", (batch, queries, len(mapping)), 2.0, -2.0)
    boxes = boxes_of(case, "post.pose_boxes", batch, queries)
    keypoints = case.uniform("input:post.pose_kpts", (batch, queries, numbers)).float()
    keypoints = keypoints[..., : 2 * golden["num_body_points"]].unflatten(-1, (-1, 2))
    for row, image in enumerate(given):
        found = top_queries(logits[row], facts["topk"])
        same_found(
            case,
            found._replace(labels=torch.tensor([mapping[label] for label in found.labels.tolist()])),
            f"pose{row}",
            close,
        )
        close(
            boxes_in_pixels(boxes[row, found.queries], image["size"]),
            case.stored[f"pose{row}_boxes"],
            "postprocess boxes",
            SIDE * max(image["size"]),
        )
        points = keypoints_in_pixels(keypoints[row, found.queries], image["size"])
        close(
            points.flatten(1), case.stored[f"pose{row}_keypoints"], "postprocess keypoints", SIDE * max(image["size"])
        )
