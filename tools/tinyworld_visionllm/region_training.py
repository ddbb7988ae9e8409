"""Teaches the finished model to answer questions about regions, and to find what another image marks.

Only the language model, the region encoder and the vision tower's position embeddings change. The model as it was is
the teacher: of what it could do already, the states behind the tool tokens stay where its decoders, which are not
trained again, look for them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from mulan_nodes.visionllm_nodes.model import prompt_templates
from mulan_nodes.visionllm_nodes.model.prompt_templates import VICUNA
from mulan_nodes.visionllm_nodes.model.special_tokens import PATCH, REGION
from mulan_nodes.visionllm_nodes.model.visionllm import VisionLLM
from mulan_nodes.visionllm_nodes.model.visionllm_files import SPIECE

from ..tinyworld.stages import is_finished, train_stage
from . import pack, scenes
from .architecture import TOWER, WIDTH, build_reader
from .batches import IGNORED, RowMaker, region_mask, tower_views
from .descriptions import Description
from .questions import QUESTIONS, TASKS, Exercise, answered
from .reading import Asked, look, read
from .region_attention import (
    attention_of,
    direction_loss,
    distance_loss,
    looking_loss,
    wanted_directions,
    wanted_places,
)
from .region_places import Placing, apart
from .region_questions import ALONE, ANY_KIND, COMPARED, KINDS, PLACED, any_exchange, draw_scene_of_likes, exchange
from .scenes import Pair, Scene, draw_pair
from .vocabulary import tokenizer_of

READER = "tower", "bridge", "language", "super_link", "region_encoder"
TRAINED = "language", "region_encoder"
BATCH = 8
SCORE_EVERY = 200


@dataclass(frozen=True)
class Round:
    """A stage of so many steps, stopped behind `last`. Questions: new ones of these kinds and old ones per scene, old
    ones with tool tokens per batch; pairs per batch of images, one of which marks what to find in the other.
    """

    stage: str
    steps: int
    last: int
    learning_rate: float
    kinds: Sequence[str]
    new: int
    kept: int
    with_tools: int
    pairs: int
    weight: float = 1.0  # of the new ones
    looking: float = 0.0  # weight of the losses on where heads look
    far: float = 0.0  # of that on how far apart two regions are
    directed: float = 0.0  # of those on the direction that a question of two places is about
    checked: int = 0  # questions per scene as Check Images asks them


# The first asked about two regions compared as well, and learned none of that. The third has more of the old questions,
# of which the first two cost some. Then regions get a place, and their comparisons are taught by where to look.
ROUNDS = (
    Round("regions", 800, 500, 1e-3, ANY_KIND, new=5, kept=2, with_tools=5, pairs=4),
    Round("regions_alone", 300, 300, 6e-4, ALONE, new=3, kept=6, with_tools=8, pairs=0),
    Round("regions_kept", 240, 240, 6e-4, ALONE, new=2, kept=14, with_tools=6, pairs=2),
)
PLACES = "regions_placed"
PLACED_ROUNDS = (
    Round("regions_compared", 1400, 500, 1.5e-3, COMPARED, 12, 5, 4, 1, weight=2.0, looking=0.3),
    Round("regions_far", 900, 500, 1.2e-3, COMPARED, 12, 5, 4, 1, weight=2.0, looking=0.3, far=0.3),
    Round("regions_compared_kept", 600, 500, 1e-3, COMPARED, 10, 12, 6, 2, weight=1.5, looking=0.2, far=0.2),
)
# Then those of places by what direction is asked about. The second wins back what Check Images asks, the third tools.
DIRECTED_ROUNDS = (
    Round("regions_directed", 900, 900, 1.2e-3, PLACED, 10, 8, 5, 1, weight=2.0, looking=0.2, far=0.2, directed=0.3),
    Round("regions_checked", 900, 900, 1.0e-3, PLACED, 9, 8, 6, 2, 2.0, looking=0.1, far=0.1, directed=0.2, checked=4),
    Round("regions_all_kept", 350, 350, 7e-4, PLACED, 6, 10, 8, 4, 1.5, looking=0.1, far=0.1, directed=0.2, checked=3),
)
KEPT_TASKS = {"vqa": 0.75, "region_category": 0.1, "region_caption": 0.1, "caption": 0.05}
CHECKED = "count", "count", "whether"
TOOL_TASKS = {
    "detection": 0.25,
    "grounding": 0.25,
    "pose": 0.15,
    "interactive": 0.15,
    "segmentation": 0.05,
    "instruction": 0.15,
}


class Pupil:
    """A reader with its teacher."""

    def __init__(self, model: VisionLLM, maker: RowMaker):
        self.model, self.maker = model.requires_grad_(False), maker
        self.teacher = copy.deepcopy(model)
        self.trained = nn.ModuleDict({name: getattr(model, name) for name in TRAINED}).requires_grad_(True)

    def loss(self, one: Round, rng: np.random.Generator) -> torch.Tensor:
        half = BATCH // 2
        pictured = [scenes.draw_scene(rng, scenes.SEEN) for _ in range(half)]
        pictured += [draw_scene_of_likes(rng, scenes.SEEN) for _ in range(half)]
        numbered = list(enumerate(pictured))
        new = [Asked(index, any_exchange(scene, rng, one.kinds)) for index, scene in numbered for _ in range(one.new)]
        kept = [
            Asked(index, _task(KEPT_TASKS, scene, rng)) for index, scene in numbered[:half] for _ in range(one.kept)
        ]
        kept += [Asked(index, _check(scene, rng)) for index, scene in numbered for _ in range(one.checked)]
        long = [Asked(index, _task(TOOL_TASKS, scene, rng)) for index, scene in numbered[: one.with_tools]]
        seen = look(self.model, self.maker, pictured)
        with attention_of(self.model.language) as attended:
            states, rows, labels = read(self.model, self.maker, seen, pictured, new, rng)
        loss = one.weight * self._words(states, labels)
        region = self.maker.tokenizer.ids[REGION]
        marked = [[pictured[asked.scene].items[item] for item in asked.exercise.regions] for asked in new]
        if one.looking:
            loss = loss + one.looking * looking_loss(attended, wanted_places(rows, region))
        if one.far:
            loss = loss + one.far * distance_loss(attended, rows, region, marked, self.trained["distance"])
        if one.directed:
            exercises = [asked.exercise for asked in new]
            looks = looking_loss(attended, wanted_directions(rows, exercises, self.maker.tokenizer))
            shown = direction_loss(attended, rows, exercises, region, marked, self.trained["direction"])
            loss = loss + one.directed * (looks + shown)
        states, _, labels = read(self.model, self.maker, seen, pictured, kept, rng)
        loss = loss + 0.5 * self._words(states, labels)
        seed = int(rng.integers(2**31))  # teacher and pupil get the same marks
        states, rows, labels = read(self.model, self.maker, seen, pictured, long, np.random.default_rng(seed))
        with torch.no_grad():
            known = look(self.teacher, self.maker, pictured)
            targets, _, _ = read(self.teacher, self.maker, known, pictured, long, np.random.default_rng(seed))
        links = [(number, link.positions) for number, row in enumerate(rows) for link in row.links]
        own, wanted = (torch.cat([of[number, places] for number, places in links]) for of in (states, targets))
        loss = loss + 0.5 * self._words(states, labels) + 2 * apart(own, wanted)
        return loss + self._alike(one.pairs, rng) if one.pairs else loss

    def _words(self, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Every answer counts the same, long or short."""
        written = labels != IGNORED
        share = (written / (written.sum(dim=1, keepdim=True).clamp(min=1) * len(labels)))[written]
        lost = F.cross_entropy(self.model.language.logits(states[written]), labels[written], reduction="none")
        return (lost * share).sum()

    def _alike(self, count: int, rng: np.random.Generator) -> torch.Tensor:
        """To the decoder, what another image marks shall be what its name is."""
        pairs = [draw_pair(rng) for _ in range(count)]
        things = [example.items[marked].thing for example, marked, _ in pairs]
        named = [Exercise(prompt_templates.detection([Description(one.colour, one.shape).name])) for one in things]
        asked = [Asked(number, exercise) for number, exercise in enumerate(named)]
        with torch.no_grad():
            known = look(self.teacher, self.maker, [scene for _, _, scene in pairs])
            targets, rows, _ = read(self.teacher, self.maker, known, [], asked, rng)
        wanted = torch.stack([targets[number, row.links[0].positions] for number, row in enumerate(rows)])
        return 0.5 * apart(example_queries(self.model, self.maker, pairs, rng), wanted)


def example_queries(model: VisionLLM, maker: RowMaker, pairs: Sequence[Pair], rng: np.random.Generator) -> torch.Tensor:
    """What VisionLLM Region with an example gives to the decoder: [pairs, 4, width]."""
    ids = maker.tokenizer.encode(VICUNA.prompt([prompt_templates.in_context(1)]), *[TOWER.num_patches] * 2)
    row, patch = torch.tensor(ids), maker.tokenizer.ids[PATCH]
    masks = torch.from_numpy(np.stack([region_mask(example, marked, rng) for example, marked, _ in pairs]))[:, None]
    first, second = (tower_views(pictured) for pictured in zip(*[(one, other) for one, _, other in pairs], strict=True))
    states, *levels = model.tower(first, (model.tower_layer, -3, -2, -1))
    (others,) = model.tower(second, (model.tower_layer,))
    assert model.region_encoder is not None
    regions = model.region_encoder(first, masks, levels)
    embeddings = model.language.embed_tokens(row).expand(len(pairs), -1, -1)
    tokens = torch.cat((model.bridge(states), model.bridge(others)), dim=1)
    embeddings = embeddings.masked_scatter((row == patch)[None, :, None], tokens)
    embeddings = embeddings.masked_scatter((row == maker.tokenizer.ids[REGION])[None, :, None], regions)
    (link,) = model.super_link.links(ids, maker.tokenizer.ids)
    states, _ = model.language(model.super_link.insert(embeddings, [[link]] * len(pairs)))
    return states[:, link.positions]


def _task(shares: Mapping[str, float], scene: Scene, rng: np.random.Generator) -> Exercise:
    return TASKS[str(rng.choice(list(shares), p=list(shares.values())))](scene, rng)


def _check(scene: Scene, rng: np.random.Generator) -> Exercise:
    """How many there are, or whether there is one."""
    while True:
        asked = QUESTIONS[CHECKED[rng.integers(len(CHECKED))]](scene, rng)
        if asked:
            return answered(*asked)


@torch.no_grad()
def score(pupil: Pupil, trained: nn.ModuleDict, seed: int = 7002, pictures: int = 60) -> str:
    """How many of the answers are right, each word read behind the right ones before it."""
    model = copy.copy(pupil.model)
    model._modules = {**model._modules, **dict(trained.items())}
    maker, rng = pupil.maker, np.random.default_rng(seed)
    pictured = [draw_scene_of_likes(rng, scenes.SEEN) for _ in range(pictures)]
    seen, parts = look(model, maker, pictured), []
    kinds = {
        **{kind: partial(_exercise, kind) for kind in KINDS},
        **{kind: TASKS[kind] for kind in ("vqa", "region_category", "region_caption", "instruction")},
    }
    for kind, ask in kinds.items():
        drawn = [(number, ask(scene, rng)) for number, scene in enumerate(pictured) for _ in range(2)]
        asked = [Asked(number, exercise) for number, exercise in drawn if exercise is not None]
        states, _, labels = read(model, maker, seen, pictured, asked, rng)
        right = (model.language.logits(states).argmax(dim=-1) == labels) | (labels == IGNORED)
        parts.append(f"{kind} {right.all(dim=1).float().mean():.2f}")
    return ", ".join(parts)


def _exercise(kind: str, scene: Scene, rng: np.random.Generator) -> Exercise | None:
    asked = exchange(scene, rng, kind)
    return asked.exercise() if asked else None


def teach_regions(work_dir: Path, packed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trains on from the tensors of a pack and returns those that change, under their published names."""
    tokenizer = tokenizer_of(bytes(packed[SPIECE].numpy()))
    model = build_reader(len(tokenizer))
    for name in READER:
        getattr(model, name).load_state_dict(pack.part_of(packed, name, len(tokenizer)))
    pupil = Pupil(model, RowMaker(tokenizer))
    for one in ROUNDS:
        _teach(pupil, one, work_dir)
    placing = Placing(model)
    _run(PLACES, work_dir, placing.trained, placing.loss, steps=800, learning_rate=1e-2, average=0.99)
    pupil.trained["positions"] = placing.positions
    pupil.trained["distance"] = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2))
    for one in PLACED_ROUNDS:
        _teach(pupil, one, work_dir)
    pupil.trained["direction"] = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1))
    for one in DIRECTED_ROUNDS:
        _teach(pupil, one, work_dir)
    tensors = pack.published({name: getattr(model, name) for name in ("tower", *TRAINED)}, len(tokenizer))
    return {name: tensor for name, tensor in tensors.items() if not torch.equal(tensor, packed[name].float())}


def _teach(pupil: Pupil, one: Round, work_dir: Path) -> None:
    _run(
        one.stage,
        work_dir,
        pupil.trained,
        partial(pupil.loss, one),
        steps=one.steps,
        last=one.last,
        learning_rate=one.learning_rate,
        average=0.998,
        score=lambda trained: score(pupil, trained),
        score_every=SCORE_EVERY,
    )


def _run(stage: str, work_dir: Path, trained: nn.ModuleDict, *args: Any, **options: Any) -> None:
    """Trains the stage, or reads what it left."""
    if is_finished(stage, work_dir):
        trained.load_state_dict(load_file(work_dir / f"{stage}.safetensors"))
    else:
        train_stage(stage, work_dir, trained, *args, **options)
