"""Trains the decoders: grounding (boxes and masks) and pose (keypoints), each asked with what the finished language
model says.

A decoder begins on stand-ins, learned vectors for what a name means, so that it can learn to see while the language
model still learns to read; then it goes on with the states of the language model, which stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from mulan_nodes.visionllm_nodes.model.grounding_decoder import GroundingDecoder
from mulan_nodes.visionllm_nodes.model.pose_decoder import PoseDecoder

from ..tinyworld.stages import is_finished, train_stage
from ..tinyworld.world import PALETTE, SHAPES
from . import losses, scenes
from .architecture import WIDTH
from .batches import decoder_images
from .descriptions import SIDES, Description
from .questions import TASKS, Exercise
from .reader_training import Reader
from .reading import Asked, look, read
from .scenes import KEYPOINTS, PICTURE_SIZE, SIZES, Scene

BATCH = 16
PROPOSAL_TIMES = 4  # proposals that each shape gets: more than one, so that more of its cells learn
GROUNDING_TASKS = {"detection": 0.4, "grounding": 0.35, "interactive": 0.15, "segmentation": 0.05, "instruction": 0.05}

Queries = tuple[torch.Tensor, torch.Tensor]  # [B, most, 4, width], bool [B, most]
Ask = Callable[
    [Sequence[Scene], Sequence[Exercise], np.random.Generator], tuple[Queries, Queries]
]  # of names, then of keypoints


@dataclass(frozen=True)
class Wanted:
    """What a decoder should find in B pictures, padded to N shapes: boxes [B, N, 4] cxcywh 0..1, labels [B, N, K],
    present bool [B, N].

    `items[b]`: the scene's items that the shapes are.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    present: torch.Tensor
    items: list[list[int]]

    def repeated(self, times: int) -> Wanted:
        return Wanted(
            self.boxes.repeat(times, 1, 1),
            self.labels.repeat(times, 1, 1),
            self.present.repeat(times, 1),
            self.items * times,
        )

    @property
    def count(self) -> int:
        return max(1, int(self.present.sum()))


def wanted(pictured: Sequence[Scene], exercises: Sequence[Exercise]) -> Wanted:
    names = max(len(exercise.found) for exercise in exercises)
    boxes, labels, all_items = [], [], []
    for scene, exercise in zip(pictured, exercises, strict=True):
        items = sorted({item for found in exercise.found for item in found})
        corners = torch.tensor(
            np.array([scene.items[item].box for item in items]).reshape(-1, 4) / PICTURE_SIZE, dtype=torch.float32
        )
        boxes.append(torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), dim=1))
        labels.append(
            torch.tensor(
                [
                    [float(item in found) for found in exercise.found] + [0.0] * (names - len(exercise.found))
                    for item in items
                ]
            ).reshape(len(items), names)
        )
        all_items.append(items)
    stacked, present = padded(boxes)
    return Wanted(stacked, padded(labels)[0], present, all_items)


def padded(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """[N_i, ...] each -> [B, most, ...] and which of it is there, bool [B, most]."""
    stacked = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return stacked, torch.arange(stacked.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]


class StandIns(nn.Module):
    """A learned vector for each word's meaning, instead of a language model."""

    def __init__(self):
        super().__init__()
        self.words = nn.ModuleList(nn.Embedding(1 + len(names), WIDTH) for names in (PALETTE, SHAPES, SIZES, SIDES))
        self.keypoints = nn.Embedding(sum(map(len, KEYPOINTS.values())), WIDTH)
        self.place = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, WIDTH))
        self.slots = nn.Parameter(torch.randn(4, WIDTH) * 0.3)

    def ask(
        self, pictured: Sequence[Scene], exercises: Sequence[Exercise], rng: np.random.Generator
    ) -> tuple[Queries, Queries]:
        names = [
            torch.stack(
                [self._name(scene, meant, found) for meant, found in zip(exercise.meant, exercise.found, strict=True)]
            )
            for scene, exercise in zip(pictured, exercises, strict=True)
        ]
        keypoints = [
            self.keypoints(
                torch.tensor([_keypoint(exercise.shape, name) for name in exercise.keypoints], dtype=torch.long)
            )
            for exercise in exercises
        ]
        named, pointed = ([rows[:, None] + self.slots for rows in group] for group in (names, keypoints))
        return padded(named), padded(pointed)

    def _name(self, scene: Scene, meant: Description | None, found: tuple[int, ...]) -> torch.Tensor:
        if meant is None:
            item = scene.items[found[0]]
            meant = Description(item.thing.colour, item.thing.shape, item.thing.size)
            place = self.place(torch.tensor(item.box, dtype=torch.float32) / PICTURE_SIZE)
        else:
            place = 0
        tables: Any = self.words
        values = (meant.colour, PALETTE), (meant.shape, SHAPES), (meant.size, SIZES), (meant.side, SIDES)
        rows: Any = sum(
            table.weight[1 + list(names).index(value) if value else 0]
            for table, (value, names) in zip(tables, values, strict=True)
        )
        return rows + place


def _keypoint(shape: str, name: str) -> int:
    return [(of, point) for of, points in KEYPOINTS.items() for point in points].index((shape, name))


def asker(reader: Reader) -> Ask:
    """Asks with the states of a language model that is not trained any more."""

    @torch.no_grad()
    def ask(pictured, exercises, rng):
        seen = look(reader.model, reader.maker, pictured)
        asked = [Asked(number, exercise) for number, exercise in enumerate(exercises)]
        states, rows, _ = read(reader.model, reader.maker, seen, pictured, asked, rng)
        queries = [
            torch.stack([states[number, link.positions] for link in row.links]) for number, row in enumerate(rows)
        ]
        counts = [len(exercise.found) for exercise in exercises]
        return padded([row[:count] for row, count in zip(queries, counts, strict=True)]), padded(
            [row[count:] for row, count in zip(queries, counts, strict=True)]
        )

    return ask


def whole(images: torch.Tensor) -> torch.Tensor:
    return torch.ones(images.shape[0], *images.shape[2:], dtype=torch.bool)


def boxes_loss(logits: torch.Tensor, boxes: torch.Tensor, target: Wanted, times: int = 1):
    """The loss per object of one layer, or of several joined along the batch; and the pairs."""
    pairs = losses.match(logits.detach(), boxes.detach(), target.labels, target.boxes, target.present, times)
    return losses.detection(logits, boxes, target.labels, target.boxes, pairs) / (times * target.count), pairs


def grounding_loss(decoder: GroundingDecoder, ask: Ask, rng: np.random.Generator) -> torch.Tensor:
    pictured = [scenes.draw_scene(rng, scenes.SEEN) for _ in range(BATCH)]
    exercises = []
    for scene in pictured:
        exercise = None
        while exercise is None or exercise.shape:  # a pose instruction is the other decoder's
            exercise = TASKS[rng.choice(list(GROUNDING_TASKS), p=list(GROUNDING_TASKS.values()))](scene, rng)
        exercises.append(exercise)
    (queries, present), _ = ask(pictured, exercises, rng)
    images, target = decoder_images(pictured), wanted(pictured, exercises)
    found = decoder(images, whole(images), queries, present)
    loss, _ = boxes_loss(found.proposals.logits, found.proposals.boxes, target, PROPOSAL_TIMES)
    for logits, boxes in zip(found.all_logits, found.all_boxes, strict=True):
        of_layer, pairs = boxes_loss(logits, boxes, target)
        loss = loss + of_layer
    pictures, at, objects = pairs
    masks = torch.from_numpy(
        np.stack(
            [
                pictured[picture].items[target.items[picture][number]].mask
                for picture, number in zip(pictures.tolist(), objects.tolist(), strict=True)
            ]
        )
    )
    mask_logits = torch.einsum(
        "mc,mchw->mhw", decoder.mask_embed(found.hidden_states[pictures, at]), found.mask_features[pictures]
    )
    return loss + losses.masks(mask_logits, masks) / target.count


def pose_loss(decoder: PoseDecoder, ask: Ask, rng: np.random.Generator) -> torch.Tensor:
    pictured = [scenes.draw_scene(rng, scenes.SEEN) for _ in range(BATCH)]
    exercises = [TASKS["pose"](scene, rng) for scene in pictured]
    (names, named), (keypoints, asked) = ask(pictured, exercises, rng)
    images, target = decoder_images(pictured), wanted(pictured, exercises)
    found = decoder(images, whole(images), names, named, keypoints, asked)
    loss, _ = boxes_loss(found.proposals.logits, found.proposals.boxes, target, PROPOSAL_TIMES)
    for layer in found.layers:
        of_layer, (pictures, at, objects) = boxes_loss(layer.logits, layer.boxes, target)
        loss = loss + of_layer
        if layer.keypoints is None:
            continue
        points = torch.zeros(len(pictures), asked.shape[1], 2)
        for number, (picture, column) in enumerate(zip(pictures.tolist(), objects.tolist(), strict=True)):
            exercise = exercises[picture]
            item = pictured[picture].items[target.items[picture][column]]
            order = [KEYPOINTS[exercise.shape].index(name) for name in exercise.keypoints]
            points[number, : len(order)] = torch.from_numpy(item.keypoints[order] / PICTURE_SIZE).float()
        of_points = losses.keypoints(
            layer.keypoints[pictures, at][:, : asked.shape[1]], points, target.boxes[pictures, objects], asked[pictures]
        )
        loss = loss + of_points / max(1, int(asked[pictures].sum())) * 3
    return loss


class Seeing(nn.Module):
    """A decoder with the stand-ins that it begins on."""

    def __init__(self, decoder: GroundingDecoder | PoseDecoder):
        super().__init__()
        self.decoder = decoder
        self.stand_ins = StandIns()

    def loss(self, rng: np.random.Generator, ask: Ask | None = None) -> torch.Tensor:
        ask = ask or self.stand_ins.ask
        if isinstance(self.decoder, PoseDecoder):
            return pose_loss(self.decoder, ask, rng)
        return grounding_loss(self.decoder, ask, rng)


def train_on_stand_ins(name: str, work_dir: Path, seeing: Seeing, steps: int) -> None:
    _train(f"{name}_on_stand_ins", work_dir, seeing, seeing.loss, steps, 1e-3)


def train_on_reader(name: str, work_dir: Path, seeing: Seeing, reader: Reader, steps: int) -> None:
    ask = asker(reader)
    _train(name, work_dir, seeing.decoder, lambda rng: seeing.loss(rng, ask), steps, 8e-4)


def _train(stage: str, work_dir: Path, model: nn.Module, loss_of: Callable, steps: int, learning_rate: float) -> None:
    if is_finished(stage, work_dir):
        model.load_state_dict(load_file(work_dir / f"{stage}.safetensors"))
        return
    train_stage(stage, work_dir, model, loss_of, steps=steps, learning_rate=learning_rate, average=0.998)
