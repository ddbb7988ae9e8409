"""Trains what reads: vision tower, bridge, region encoder, language model and super link, without the decoders.

The language model learns its answers, tool tokens included. What no answer teaches is taught by probes, linear layers
that are thrown away: what stands in each patch of the picture (so that seeing need not be learned through words), and
what the states behind each tool token mean (so that the decoders, which are trained on a finished language model, find
it there).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from mulan_nodes.visionllm_nodes.model.llama_tokenizer import VisionTokenizer

from ..tinyworld.stages import SEED, is_finished, train_stage
from ..tinyworld.world import PALETTE, SHAPES
from . import questions, scenes
from .architecture import TOWER, WIDTH, build_reader
from .batches import IGNORED, RowMaker
from .descriptions import SIDES, Description
from .questions import TASKS
from .reading import Asked, Pictures, look, read
from .scenes import PICTURE_SIZE, SIZES, Scene

BATCH = 16
SHORT_QUESTIONS = 5  # per picture
LONG_QUESTIONS = 9  # per batch
LONG_TASKS = {
    "detection": 0.2,
    "grounding": 0.25,
    "pose": 0.15,
    "interactive": 0.15,
    "segmentation": 0.05,
    "instruction": 0.2,
}
SHORT_TASKS = {"vqa": 0.8, "region_category": 0.08, "region_caption": 0.08, "caption": 0.04}

_COLOURS, _SHAPES, _SIZES, _SIDES = (("", *names) for names in (PALETTE, SHAPES, SIZES, SIDES))
_KEYPOINTS = tuple(f"{shape} {name}" for shape, names in scenes.KEYPOINTS.items() for name in names)


class Probes(nn.Module):
    """Linear readings that only training needs."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Linear(WIDTH, len(_COLOURS) + len(_SHAPES) + len(_SIZES) + 1)
        self.meaning = nn.Linear(WIDTH, len(_COLOURS) + len(_SHAPES) + len(_SIZES) + len(_SIDES))
        self.place = nn.Linear(WIDTH, 4)
        self.keypoint = nn.Linear(WIDTH, len(_KEYPOINTS))

    def of_patches(self, tokens: torch.Tensor, pictured: Sequence[Scene]) -> torch.Tensor:
        """tokens [B, patches, width]: the shape that covers most of each patch, and whether its centre is there."""
        targets = torch.from_numpy(np.stack([patch_contents(scene) for scene in pictured])).long()
        *kinds, centre = self.patch(tokens).split((len(_COLOURS), len(_SHAPES), len(_SIZES), 1), dim=-1)
        loss = sum(
            F.cross_entropy(kind.flatten(0, 1), targets[..., index].flatten()) for index, kind in enumerate(kinds)
        )
        return loss + 2 * F.binary_cross_entropy_with_logits(centre[..., 0], targets[..., 3].float())

    def of_meaning(self, states: torch.Tensor, meant: Sequence[Description]) -> torch.Tensor:
        """states [N, width] and what each stands for."""
        targets = torch.tensor(
            [
                [_COLOURS.index(one.colour), _SHAPES.index(one.shape), _SIZES.index(one.size), _SIDES.index(one.side)]
                for one in meant
            ]
        )
        kinds = self.meaning(states).split((len(_COLOURS), len(_SHAPES), len(_SIZES), len(_SIDES)), dim=-1)
        return torch.stack([F.cross_entropy(kind, targets[:, index]) for index, kind in enumerate(kinds)]).sum()


def patch_contents(scene: Scene) -> np.ndarray:
    """Per patch of the tower: colour, shape and size of what covers at least an eighth of it (0: nothing), and whether
    that one's centre is there.
    """
    side = TOWER.image_size // 14
    cell = PICTURE_SIZE // side
    contents = np.zeros((side, side, 4), np.int64)
    most = np.full((side, side), 1 / 8)
    for item in scene.items:
        share = item.mask.reshape(side, cell, side, cell).mean(axis=(1, 3))
        here = share > most
        contents[here, :3] = [
            _COLOURS.index(item.thing.colour),
            _SHAPES.index(item.thing.shape),
            _SIZES.index(item.thing.size),
        ]
        most = np.maximum(most, share)
        contents[int(item.y / cell), int(item.x / cell), 3] = 1
    return contents.reshape(-1, 4)


class Reader(nn.Module):
    """The model without decoders, and the probes."""

    def __init__(self, tokenizer: VisionTokenizer):
        super().__init__()
        self.model = build_reader(len(tokenizer))
        self.probes = Probes()
        self.maker = RowMaker(tokenizer)

    def loss(self, rng: np.random.Generator) -> torch.Tensor:
        pictured = [scenes.draw_scene(rng, scenes.SEEN) for _ in range(BATCH)]
        pictures = look(self.model, self.maker, pictured)
        short = [
            Asked(number, TASKS[rng.choice(list(SHORT_TASKS), p=list(SHORT_TASKS.values()))](scene, rng))
            for number, scene in enumerate(pictured)
            for _ in range(SHORT_QUESTIONS)
        ]
        long = [
            Asked(number, TASKS[rng.choice(list(LONG_TASKS), p=list(LONG_TASKS.values()))](scene, rng))
            for number, scene in enumerate(pictured[:LONG_QUESTIONS])
        ]
        return (
            self.probes.of_patches(pictures.tokens, pictured)
            + 2 * self._words(pictures, pictured, short, rng)
            + self._words(pictures, pictured, long, rng)
        )

    def _words(
        self, pictures: Pictures, pictured: Sequence[Scene], asked: Sequence[Asked], rng: np.random.Generator
    ) -> torch.Tensor:
        states, rows, labels = read(self.model, self.maker, pictures, pictured, asked, rng)
        written = labels != IGNORED
        # Every answer counts the same, long or short.
        share = (written / (written.sum(dim=1, keepdim=True).clamp(min=1) * len(rows)))[written]
        loss = (
            F.cross_entropy(self.model.language.logits(states[written]), labels[written], reduction="none") * share
        ).sum()
        queries = [states[number, link.positions].mean(dim=0) for number, row in enumerate(rows) for link in row.links]
        if not queries:
            return loss
        return loss + self._probed(torch.stack(queries), pictured, asked)

    def _probed(self, queries: torch.Tensor, pictured: Sequence[Scene], asked: Sequence[Asked]) -> torch.Tensor:
        meant, boxes, keypoints = [], [], []  # each with the number of its query
        number = 0
        for one in asked:
            items = pictured[one.scene].items
            for description, found in zip(one.exercise.meant, one.exercise.found, strict=True):
                thing = items[found[0]].thing if description is None else None
                meant.append((number, Description(thing.colour, thing.shape, thing.size) if thing else description))
                if len(found) == 1:
                    box = items[found[0]].box / PICTURE_SIZE
                    boxes.append((number, np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])))
                number += 1
            for name in one.exercise.keypoints:
                keypoints.append((number, _KEYPOINTS.index(f"{one.exercise.shape} {name}")))
                number += 1
        loss = self.probes.of_meaning(queries[[place for place, _ in meant]], [one for _, one in meant])
        if boxes:
            wanted = torch.from_numpy(np.stack([box for _, box in boxes])).float()
            loss = (
                loss + 3 * (self.probes.place(queries[[place for place, _ in boxes]]).sigmoid() - wanted).abs().mean()
            )
        if keypoints:
            loss = loss + 0.5 * F.cross_entropy(
                self.probes.keypoint(queries[[place for place, _ in keypoints]]),
                torch.tensor([index for _, index in keypoints]),
            )
        return loss


@torch.no_grad()
def score(reader: Reader, things=scenes.SEEN, seed: int = 7001, pictures: int = 60) -> str:
    """How many of the first words of the answers are right, per kind of question."""
    rng = np.random.default_rng(seed)
    pictured = [scenes.draw_scene(rng, things) for _ in range(pictures)]
    seen = look(reader.model, reader.maker, pictured)
    parts = []
    kinds = {
        **questions.QUESTIONS,
        **{name: TASKS[name] for name in ("region_category", "region_caption", "instruction", "grounding")},
    }
    for name, ask in kinds.items():
        asked = []
        for number, scene in enumerate(pictured):
            for _ in range(2):
                exercise = ask(scene, rng)
                if isinstance(exercise, tuple):
                    exercise = questions.answered(*exercise)
                if exercise is not None:
                    asked.append(Asked(number, exercise))
        states, rows, labels = read(reader.model, reader.maker, seen, pictured, asked, rng)
        written = labels != IGNORED
        right = (reader.model.language.logits(states).argmax(dim=-1) == labels) | ~written
        parts.append(f"{name} {right.all(dim=1).float().mean():.2f}")
    return ", ".join(parts)


def train_reader(work_dir: Path, tokenizer: VisionTokenizer, steps: int) -> Reader:
    torch.manual_seed(SEED)
    reader = Reader(tokenizer)
    if is_finished("reader", work_dir):
        reader.load_state_dict(load_file(work_dir / "reader.safetensors"))
        return reader
    train_stage(
        "reader",
        work_dir,
        reader,
        reader.loss,
        steps=steps,
        learning_rate=1.5e-3,
        average=0.998,
        score=score,
        score_every=500,
    )
    return reader
