"""What the tiny VisionLLM answers about marked shapes, asked as VisionLLM Ask does, by how they are marked."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import torch

from mulan_nodes.visionllm_nodes.model import prompt_templates
from mulan_nodes.visionllm_nodes.model.answers import answer
from mulan_nodes.visionllm_nodes.model.region_mentions import place_regions
from mulan_nodes.visionllm_nodes.model.visionllm_loader import LoadedVisionLLM
from mulan_nodes.visionllm_nodes.region_prompts import regions_per_image

from . import evaluation, scenes
from .region_questions import KINDS, Exchange, draw_scene_of_likes, exchange
from .scenes import Item, Scene

SEED = 7300
GOAL = 0.9
ANSWER_TOKENS = 8


def _boxes(items: list[Item], rng: np.random.Generator) -> dict:
    corners = [item.box.clip(0, scenes.PICTURE_SIZE - 1).tolist() for item in items]
    return {"bboxes": [{"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1} for x1, y1, x2, y2 in corners]}


def _masks(items: list[Item], rng: np.random.Generator) -> dict:
    return {"mask": torch.from_numpy(np.stack([item.mask for item in items])).float()}


def _points(items: list[Item], rng: np.random.Generator) -> dict:
    """A pixel of each, anywhere on it."""
    pixels = [item.mask.nonzero() for item in items]
    chosen = [(rows[index], columns[index]) for rows, columns in pixels for index in [rng.integers(len(rows))]]
    return {"points": json.dumps([{"x": int(x), "y": int(y)} for y, x in chosen])}


MARKS: dict[str, Callable[[list[Item], np.random.Generator], dict]] = {
    "boxes": _boxes,
    "masks": _masks,
    "points": _points,
}


def examine_regions(
    loaded: LoadedVisionLLM,
    count: int,
    things=scenes.SEEN,
    seed: int = SEED,
    on_question: Callable[[int], None] = lambda number: None,
) -> dict[str, dict[str, float]]:
    """The share of right answers to `count` questions, per kind of question and per kind of mark. Every question is
    about a new scene, which is the same for all marks.
    """
    rng = np.random.default_rng(seed)
    scores, done = {}, 0
    for kind in KINDS:
        right: dict[str, list[bool]] = {mark: [] for mark in MARKS}
        for _ in range(count):
            scene, asked = _question(kind, things, rng)
            for mark, marked in MARKS.items():
                regions = marked([scene.items[item] for item in asked.items], rng)
                right[mark].append(evaluation.exact_match(ask(loaded, scene, asked, regions), asked.rounds[-1][1]))
            done += 1
            on_question(done)
        scores[kind] = {mark: float(np.mean(values)) for mark, values in right.items()}
    return scores


def _question(kind: str, things, rng: np.random.Generator) -> tuple[Scene, Exchange]:
    while True:
        scene = draw_scene_of_likes(rng, things)
        asked = exchange(scene, rng, kind)
        if asked is not None:
            return scene, asked


def ask(loaded: LoadedVisionLLM, scene: Scene, asked: Exchange, regions: dict) -> str:
    """The answer to the last round; regions: the node's inputs that mark the items, in their order."""
    (marked,) = regions_per_image([scene.picture.shape[:2]], loaded.settings.tower, **regions)
    *before, (question, _) = asked.rounds
    turns, named = place_regions(prompt_templates.chat(question, before), len(marked))
    (reply,) = answer(loaded, [scene.picture], [turns], region_masks=marked.marks[named], max_tokens=ANSWER_TOKENS)
    return reply.plain_text
