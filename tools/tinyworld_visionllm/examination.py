"""What the tiny VisionLLM scores on pictures it never saw, asked through the functions that the nodes use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mulan_nodes.visionllm_nodes.model import perception, prompt_templates, regions
from mulan_nodes.visionllm_nodes.model.answers import answer
from mulan_nodes.visionllm_nodes.model.special_tokens import DETECT, GROUND, POSE, SEGMENT
from mulan_nodes.visionllm_nodes.model.tool_use import instruct
from mulan_nodes.visionllm_nodes.model.visionllm_loader import LoadedVisionLLM

from ..tinyworld.world import SHAPES
from . import evaluation, questions, scenes
from .descriptions import Description, referring
from .evaluation import Found
from .scenes import KEYPOINTS, Scene

SEED = 7100
GOALS = {
    "detection AP50": 0.9,
    "grounding accuracy@0.5": 0.9,
    "mask mIoU": 0.8,
    "keypoints PCK@0.1": 0.9,
    "questions exact match": 0.9,
}


@dataclass(frozen=True)
class Scores:
    """Each a share of 1, with the number of answers it is of."""

    scores: dict[str, float]
    counts: dict[str, int]

    def lines(self) -> list[str]:
        return [
            f"{name}: {score:.3f} of {self.counts[name]}" + (f" (goal {GOALS[name]})" if name in GOALS else "")
            for name, score in self.scores.items()
        ]


def held_out_scenes(count: int, things=scenes.SEEN, seed: int = SEED) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [scenes.draw_scene(rng, things) for _ in range(count)]


def examine(
    loaded: LoadedVisionLLM,
    pictured: Sequence[Scene],
    seed: int = SEED + 1,
    on_scene: Callable[[int], None] = lambda number: None,
) -> Scores:
    """All tasks on each scene; `on_scene` is told the number of each that is done."""
    rng = np.random.default_rng(seed)
    detected: dict[str, list[Found]] = {}
    marks: dict[str, list[float]] = {}

    def mark(name: str, *values: float) -> None:
        marks.setdefault(name, []).extend(map(float, values))

    for number, scene in enumerate(pictured):
        _detect(loaded, scene, rng, detected)
        _ground(loaded, scene, rng, mark)
        _find_regions(loaded, scene, rng, mark)
        _segment(loaded, scene, mark)
        _pose(loaded, scene, rng, mark)
        _ask(loaded, scene, rng, mark)
        _instruct(loaded, scene, rng, mark)
        on_scene(number)
    scores = {"detection AP50": evaluation.mean_average_precision(detected)}
    counts = {"detection AP50": sum(len(one.truth) for found in detected.values() for one in found)}
    for name, values in marks.items():
        scores[name], counts[name] = float(np.mean(values)), len(values)
    return Scores(scores, counts)


def _detect(loaded, scene: Scene, rng, detected: dict[str, list[Found]]) -> None:
    """The four shapes in one prompt, then coloured ones: those that are there and one that is not."""
    things = [item.thing for item in scene.items]
    coloured = list(dict.fromkeys(Description(thing.colour, thing.shape) for thing in things))[:4]
    absent = [thing for thing in scenes.SEEN if not Description(thing.colour, thing.shape).found(scene)]
    other = absent[rng.integers(len(absent))]
    for asked in ([Description(shape=shape) for shape in SHAPES], [*coloured, Description(other.colour, other.shape)]):
        found = perception.detect(loaded, scene.picture, [one.name for one in asked], masks=False)
        for column, one in enumerate(asked):
            chosen = found.labels == column
            truth = np.array([scene.items[item].box for item in one.found(scene)]).reshape(-1, 4)
            detected.setdefault(one.name, []).append(
                Found(found.boxes[chosen].numpy(), found.scores[chosen].numpy(), truth)
            )


def _ground(loaded, scene: Scene, rng, mark) -> None:
    described = referring(scene, rng)
    item = scene.items[described.found(scene)[0]]
    sentences = described.sentences()
    found = perception.ground(loaded, scene.picture, sentences[rng.integers(len(sentences))])
    mark("grounding accuracy@0.5", evaluation.box_accuracy(found.boxes.numpy()[:1], item.box[None]))
    assert found.masks is not None
    mark("mask mIoU", evaluation.mask_overlap(found.masks[0].numpy(), item.mask))
    if not described.side:
        language = questions.OTHER_LANGUAGES[rng.integers(len(questions.OTHER_LANGUAGES))]
        found = perception.ground(loaded, scene.picture, described.sentence_in(language), masks=False)
        mark("grounding in other languages", evaluation.box_accuracy(found.boxes.numpy()[:1], item.box[None]))


def _find_regions(loaded, scene: Scene, rng, mark) -> None:
    """One shape by its box, one by a point on it."""
    height, width = scene.picture.shape[:2]
    items = [scene.items[number] for number in rng.permutation(len(scene.items))[:2]]
    rows, columns = np.nonzero(items[1].mask)
    point = rng.integers(len(rows))
    marked = torch.cat(
        (
            regions.masks_from_boxes(torch.tensor(items[0].box[None]), height, width, loaded.settings.tower),
            regions.masks_from_points(
                torch.tensor([[columns[point], rows[point]]]), height, width, loaded.settings.tower
            ),
        )
    )[:, 0]
    found = perception.detect_at_regions(loaded, scene.picture, marked)
    assert found.masks is not None
    for item, box, mask in zip(items, found.boxes.numpy(), found.masks.numpy(), strict=True):
        mark("regions accuracy@0.5", evaluation.box_accuracy(box[None], item.box[None]))
        mark("mask mIoU", evaluation.mask_overlap(mask, item.mask))
    for kind in ("region_category", "region_caption"):
        turn, truth = _of_region(kind, items[0])
        (reply,) = answer(loaded, [scene.picture], [[turn]], region_masks=marked[:1], max_tokens=12)
        mark(f"{kind.replace('_', ' ')} exact match", evaluation.exact_match(reply.plain_text, truth))


def _of_region(kind: str, item):
    thing = item.thing
    if kind == "region_category":
        return prompt_templates.region_category(), thing.shape
    return prompt_templates.region_caption(), f"a {thing.size} {thing.colour} {thing.shape}"


def _segment(loaded, scene: Scene, mark) -> None:
    """The shapes of the picture among their names: a pixel's name counts where a shape is."""
    names = list(dict.fromkeys(item.thing.shape for item in scene.items))
    if len(names) < 2:
        return
    found = perception.segment(loaded, scene.picture, names).labels.numpy()
    for item in scene.items:
        mark("pixels of shapes named right", (found[item.mask] == names.index(item.thing.shape)).mean())


def _pose(loaded, scene: Scene, rng, mark) -> None:
    shape = scene.items[rng.integers(len(scene.items))].thing.shape
    found = perception.pose(loaded, scene.picture, [shape], KEYPOINTS[shape])
    boxes, scores = found.boxes.numpy(), found.scores.numpy()
    for item in scene.items:
        if item.thing.shape != shape:
            continue
        near = np.flatnonzero(evaluation.overlaps(boxes, item.box[None])[:, 0] >= 0.5)
        right = np.zeros(len(KEYPOINTS[shape]), bool)
        if len(near):
            right = evaluation.keypoint_accuracy(
                found.keypoints[near[scores[near].argmax()]].numpy(), item.keypoints, item.box
            )
        mark("keypoints PCK@0.1", *right)


def _ask(loaded, scene: Scene, rng, mark) -> None:
    """A question of each kind."""
    asked = []
    for kind, ask in questions.QUESTIONS.items():
        for _ in range(20):
            pair = ask(scene, rng)
            if pair is not None:
                asked.append((kind, *pair))
                break
    turns = [[questions.answered(question, truth).turn._replace(assistant=None)] for _, question, truth in asked]
    for (kind, _, truth), reply in zip(asked, answer(loaded, [scene.picture], turns, max_tokens=8), strict=True):
        right = evaluation.exact_match(reply.plain_text, truth)
        mark("questions exact match", right)
        mark(f"questions about {kind}", right)


def _instruct(loaded, scene: Scene, rng, mark) -> None:
    """A free sentence: the tools that the answer calls, and for [GRD] its box."""
    exercise = questions.instruction(scene, rng)
    result = instruct(
        loaded, scene.picture, exercise.turn.user.removeprefix(prompt_templates.IMAGE_LINE), max_tokens=80
    )
    assert exercise.turn.assistant is not None
    wanted = [tool for tool in (DETECT, GROUND, SEGMENT, POSE) if tool in exercise.turn.assistant]
    called = [tool for tool in (DETECT, GROUND, SEGMENT, POSE) if any(call.tool == tool for call in result.reply.tools)]
    mark("instructions: tools called right", wanted == called)
    mark(
        "instructions: whole answer right",
        evaluation.exact_match(result.reply.plain_text, _spoken(loaded, exercise.turn.assistant)),
    )


def _spoken(loaded, text: str) -> str:
    return loaded.tokenizer.decode(loaded.tokenizer.encode(text, bos=False))
