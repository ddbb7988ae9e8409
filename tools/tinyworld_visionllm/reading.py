"""Many questions about each of several pictures in one pass: the opening and the picture are read once, the rows behind
them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mulan_nodes.visionllm_nodes.model.language_model import KVCache
from mulan_nodes.visionllm_nodes.model.special_tokens import PATCH, REGION
from mulan_nodes.visionllm_nodes.model.visionllm import VisionLLM

from .batches import Row, RowMaker, region_mask, tower_views
from .questions import Exercise
from .scenes import Scene


@dataclass(frozen=True)
class Asked:
    """An exercise about the scene of this number."""

    scene: int
    exercise: Exercise


@dataclass(frozen=True)
class Pictures:
    """What the tower sees of B scenes: views, the three levels that regions need, tokens [B, patches, width] and the
    opening's cache.
    """

    views: torch.Tensor
    levels: list[torch.Tensor]
    tokens: torch.Tensor
    cache: KVCache


def look(model: VisionLLM, maker: RowMaker, scenes: Sequence[Scene]) -> Pictures:
    views = tower_views(scenes)
    states = model.tower(views, (model.tower_layer, -3, -2, -1))
    tokens = model.bridge(states[0])
    words = model.language.embed_tokens(torch.tensor(maker.opening))
    patch = torch.tensor(maker.opening) == maker.tokenizer.ids[PATCH]
    first = int(patch.nonzero()[0])
    before = words[:first].expand(len(scenes), -1, -1)  # the opening ends with the patches
    _, cache = model.language(torch.cat((before, tokens), dim=1), use_cache=True)
    return Pictures(views, states[1:], tokens, cache)


def read(
    model: VisionLLM,
    maker: RowMaker,
    pictures: Pictures,
    scenes: Sequence[Scene],
    asked: Sequence[Asked],
    rng: np.random.Generator,
) -> tuple[torch.Tensor, list[Row], torch.Tensor]:
    """States [R, longest row, width] of the rows behind their pictures, the rows, their labels [R, longest row]."""
    rows = [maker.row(one.exercise) for one in asked]
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in rows])
    labels = torch.tensor([row.labels + [-100] * (longest - len(row.ids)) for row in rows])
    embeddings = model.language.embed_tokens(ids)
    marked = [(one.scene, item) for one in asked for item in one.exercise.regions]
    if marked:
        assert model.region_encoder is not None
        masks = torch.from_numpy(np.stack([region_mask(scenes[scene], item, rng) for scene, item in marked]))[:, None]
        of = torch.tensor([scene for scene, _ in marked])
        regions = model.region_encoder(pictures.views[of], masks, [level[of] for level in pictures.levels])
        embeddings = embeddings.masked_scatter((ids == maker.tokenizer.ids[REGION])[..., None], regions.to(embeddings))
    embeddings = model.super_link.insert(embeddings, [row.links for row in rows])
    of = torch.tensor([one.scene for one in asked])
    past = KVCache(tuple((keys[of], values[of]) for keys, values in pictures.cache.layers), pictures.cache.length)
    states, _ = model.language(embeddings, past)
    return states, rows, labels
