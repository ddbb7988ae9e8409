"""From scenes and exercises to what the models take: tower pictures, decoder pictures, region masks, token rows with
labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mulan_nodes.visionllm_nodes.model import special_tokens
from mulan_nodes.visionllm_nodes.model.image_inputs import pose_image, tower_images
from mulan_nodes.visionllm_nodes.model.llama_tokenizer import VisionTokenizer
from mulan_nodes.visionllm_nodes.model.prompt_templates import IMAGE_LINE, VICUNA, Turn
from mulan_nodes.visionllm_nodes.model.super_link import Link

from .architecture import SETTINGS, TOWER, TOWER_PICTURE
from .questions import Exercise
from .scenes import PICTURE_SIZE, Scene

IGNORED = -100
POINT_RADIUS = 4.0  # pixels, at most: a point or a dab as a region


def tower_views(scenes: Sequence[Scene]) -> torch.Tensor:
    """[B, 3, 112, 112], one view per scene."""
    return torch.cat([tower_images(scene.picture, SETTINGS) for scene in scenes])


def decoder_images(scenes: Sequence[Scene]) -> torch.Tensor:
    """[B, 3, 128, 128]: the pictures have the decoders' size."""
    return torch.stack([pose_image(scene.picture, SETTINGS) for scene in scenes])


def region_mask(scene: Scene, item: int, rng: np.random.Generator) -> np.ndarray:
    """How somebody might mark the item: its outline, its box, or a dab on it. Bool [112, 112]."""
    shape, kind = scene.items[item], rng.integers(3)
    scale = TOWER_PICTURE / PICTURE_SIZE
    mask = np.zeros((TOWER_PICTURE, TOWER_PICTURE), bool)
    if kind == 0:
        x0, y0, x1, y1 = (shape.box * scale).clip(0, TOWER_PICTURE - 1).astype(int)
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
        return mask
    if kind == 1:
        small = Image.fromarray(shape.mask.astype(np.float32)).resize(
            (TOWER_PICTURE, TOWER_PICTURE), Image.Resampling.BILINEAR
        )
        return np.asarray(small) != 0
    rows, columns = np.nonzero(shape.mask)
    point = rng.integers(len(rows))
    y, x = np.mgrid[:TOWER_PICTURE, :TOWER_PICTURE]
    radius = max(0.71, POINT_RADIUS * rng.uniform(-0.5, 1))  # a third of the points are hardly more than a pixel
    return np.hypot(x - columns[point] * scale, y - rows[point] * scale) <= radius


@dataclass(frozen=True)
class Row:
    """What of a prompt stands behind the picture's patches, and the label of each token: the next one, where the model
    is to write it.
    """

    ids: list[int]
    labels: list[int]
    links: list[Link]  # places in `ids`


class RowMaker:
    """Exercises -> the ids of what all prompts begin with, and rows behind it."""

    def __init__(self, tokenizer: VisionTokenizer):
        self.tokenizer = tokenizer
        self._not_written = {tokenizer.ids[name] for name in special_tokens.EMBEDDINGS}
        self._tools = {tokenizer.ids[name]: name for name in special_tokens.TOOLS}
        text = VICUNA.prompt([Turn(f"{IMAGE_LINE}?")])
        ids = tokenizer.encode(text, TOWER.num_patches)
        patch = tokenizer.ids[special_tokens.PATCH]
        self.opening = ids[: len(ids) - ids[::-1].index(patch)]  # to the last patch

    def row(self, exercise: Exercise) -> Row:
        start, assistant = len(self.opening), exercise.turn.assistant
        turns = [*exercise.history, exercise.turn._replace(assistant=None)]
        asked = self.tokenizer.encode(VICUNA.prompt(turns), TOWER.num_patches)[start:]
        ids = asked
        if assistant is not None:
            ids = self.tokenizer.encode(VICUNA.prompt([*turns[:-1], exercise.turn]), TOWER.num_patches)[start:]
        labels = [IGNORED] * len(ids)
        for place in range(len(asked) - 1, len(ids) - 1):
            if ids[place + 1] not in self._not_written:
                labels[place] = ids[place + 1]
        links = [
            Link(self._tools[id], place + 1, special_tokens.PERCEPTION_COUNT)
            for place, id in enumerate(ids)
            if id in self._tools
        ]
        return Row(ids, labels, links)
