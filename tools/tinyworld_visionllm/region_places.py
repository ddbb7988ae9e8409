"""Teaches the vision tower's position embeddings to show where a region is: before, its states hardly did."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from mulan_nodes.visionllm_nodes.model.visionllm import VisionLLM

from . import scenes
from .architecture import WIDTH
from .batches import region_mask, tower_views

BATCH = 16
AS_BEFORE = 0.3  # weight of the regions' embeddings


class Placing:
    """A reader whose position embeddings and region encoder learn, with what it saw before."""

    def __init__(self, model: VisionLLM):
        assert model.region_encoder is not None
        self.model, self.known = model, copy.deepcopy(model)
        clip: Any = model.tower.vision_model
        self.positions = clip.embeddings.position_embedding.requires_grad_(True)
        self.trained = nn.ModuleDict(
            {"positions": self.positions, "region_encoder": model.region_encoder, "place": nn.Linear(WIDTH, 2)}
        )

    def loss(self, rng: np.random.Generator) -> torch.Tensor:
        """A region's center shall be a linear function of its embedding, all else what it was."""
        pictured = [scenes.draw_scene(rng, scenes.SEEN) for _ in range(BATCH)]
        views = tower_views(pictured)
        marked = [(scene, item) for scene, one in enumerate(pictured) for item in range(len(one.items))]
        masks = torch.from_numpy(np.stack([region_mask(pictured[scene], item, rng) for scene, item in marked]))[:, None]
        of = torch.tensor([scene for scene, _ in marked])
        items = [pictured[scene].items[item] for scene, item in marked]
        centers = torch.tensor([(item.x, item.y) for item in items], dtype=torch.float32) / scenes.PICTURE_SIZE
        tokens, regions = _seen(self.model, views, masks, of)
        with torch.no_grad():
            tokens_before, regions_before = _seen(self.known, views, masks, of)
        return (
            apart(self.trained["place"](regions), centers)
            + apart(tokens, tokens_before)
            + AS_BEFORE * apart(regions, regions_before)
        )


def _seen(
    model: VisionLLM, views: torch.Tensor, masks: torch.Tensor, of: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The image tokens and the embeddings of regions of the images `of`."""
    assert model.region_encoder is not None
    states, *levels = model.tower(views, (model.tower_layer, -3, -2, -1))
    return model.bridge(states), model.region_encoder(views[of], masks, [level[of] for level in levels])


def apart(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The share of the variance of what is wanted that is missed."""
    return (states - wanted).square().mean() / wanted.var()
