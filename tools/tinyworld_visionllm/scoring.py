"""Quick scores of a decoder while it trains, without the nodes' own path (which `examination.py` goes)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from mulan_nodes.visionllm_nodes.model.grounding_decoder import GroundingDecoder
from mulan_nodes.visionllm_nodes.model.pose_decoder import PoseDecoder
from torch.nn import functional as F

from . import evaluation, losses, scenes
from .batches import decoder_images
from .evaluation import Found
from .questions import TASKS, keypoints_of
from .scenes import KEYPOINTS, PICTURE_SIZE, Scene

SEED = 7002
PICTURES = 64


def pictured(things=scenes.SEEN, seed: int = SEED, count: int = PICTURES) -> tuple[list[Scene], np.random.Generator]:
    rng = np.random.default_rng(seed)
    return [scenes.draw_scene(rng, things) for _ in range(count)], rng


def _boxes(boxes: torch.Tensor) -> np.ndarray:
    return losses.corners(boxes).numpy() * PICTURE_SIZE


@torch.no_grad()
def score_grounding(decoder: GroundingDecoder, ask: Callable, things=scenes.SEEN) -> str:
    parts = []
    for task in ("detection", "grounding", "interactive"):
        seen, rng = pictured(things)
        exercises = [TASKS[task](scene, rng) for scene in seen]
        (queries, present), _ = ask(seen, exercises, rng)
        images = decoder_images(seen)
        found = decoder(images, torch.ones(images.shape[0], *images.shape[2:], dtype=torch.bool), queries, present)
        scores, answers, right, overlaps = found.logits.sigmoid(), [], [], []
        best = scores.argmax(dim=1)  # [B, K]
        masks = F.interpolate(decoder.masks(found, best), scale_factor=4.0, mode="bilinear", align_corners=False) > 0
        for number, (scene, exercise) in enumerate(zip(seen, exercises)):
            for column, items in enumerate(exercise.found):
                truth = np.array([scene.items[item].box for item in items]).reshape(-1, 4)
                answers.append(Found(_boxes(found.boxes[number]), scores[number, :, column].numpy(), truth))
                if len(items) == 1:
                    at = best[number, column]
                    right.append(evaluation.box_accuracy(_boxes(found.boxes[number, at][None]), truth))
                    overlaps.append(evaluation.mask_overlap(masks[number, column].numpy(), scene.items[items[0]].mask))
        parts.append(
            f"{task}: AP50 {evaluation.average_precision(answers):.3f}, accuracy {np.mean(right):.3f}, mask {np.mean(overlaps):.3f}"
        )
    return "; ".join(parts)


@torch.no_grad()
def score_pose(decoder: PoseDecoder, ask: Callable, things=scenes.SEEN) -> str:
    seen, rng = pictured(things)
    exercises = []
    for scene in seen:
        exercise = TASKS["pose"](scene, rng)
        exercises.append(keypoints_of(scene, exercise.meant[0], KEYPOINTS[exercise.shape]))
    (names, named), (keypoints, asked) = ask(seen, exercises, rng)
    images = decoder_images(seen)
    found = decoder(
        images, torch.ones(images.shape[0], *images.shape[2:], dtype=torch.bool), names, named, keypoints, asked
    )
    right, answers = [], []
    for number, (scene, exercise) in enumerate(zip(seen, exercises)):
        items = exercise.found[0]
        boxes, scores = _boxes(found.boxes[number]), found.logits[number, :, 0].sigmoid().numpy()
        answers.append(Found(boxes, scores, np.array([scene.items[item].box for item in items])))
        for item in items:
            shape = scene.items[item]
            near = np.flatnonzero(evaluation.overlaps(boxes, shape.box[None])[:, 0] >= 0.5)
            if not len(near):
                right += [False] * len(exercise.keypoints)
                continue
            points = (
                found.keypoints[number, near[scores[near].argmax()], : len(exercise.keypoints)].numpy() * PICTURE_SIZE
            )
            right += evaluation.keypoint_accuracy(points, shape.keypoints, shape.box).tolist()
    return f"pose: AP50 {evaluation.average_precision(answers):.3f}, PCK@0.1 {np.mean(right):.3f}"
