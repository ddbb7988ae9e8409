"""The tower of the tiny InternVL that talks learns to see, from heads that name what an image shows and where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mulan_nodes.mulan.checkpoints.language_model import HEAD_NORM, LanguageConfig
from mulan_nodes.mulan.internvl.intern_vit import InternViT, InternViTConfig
from mulan_nodes.mulan.internvl_chat.chat_model import ChatConfig, Projector

from ..emoji_world.concepts import CHARACTERS
from ..emoji_world.contrastive_batches import VARIANTS, small_pictures
from ..emoji_world.pictures import draw_corpus as draw_names
from . import pointing, world
from .contrastive_training import as_seen, begin_tower, draw_anywhere
from .stages import SEED, draw_corpus

TOWER = InternViTConfig(
    hidden_size=96,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=6,
    patch_size=8,
    image_size=world.PICTURE_SIZE,
    rms_norm=False,
    qk_norm=False,
    qkv_bias=True,
)
VOCABULARY = 4000  # of the byte-level BPE; the added tokens follow
WIDTH, LAYERS, HEADS, KEY_VALUE_HEADS, FEED_FORWARD = 128, 4, 4, 2, 320
LONGEST = 1024  # tokens
BATCH = 32
SCENES = 24000


class Seeing(nn.Module):
    """Tower and projector, with a head for each attribute that only their own training needs."""

    def __init__(self):
        super().__init__()
        self.tower = InternViT(TOWER, operations=nn)
        self.projector = Projector(chat_config(VOCABULARY), operations=nn)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(names)) for names in (world.PALETTE, world.SHAPES, world.SIZES))
        self.name = nn.Linear(WIDTH, len(CHARACTERS))
        self.here = nn.Linear(WIDTH, len(world.PALETTE) + len(world.SHAPES) + 4)
        begin_tower(self.tower)

    def loss(self, images: torch.Tensor, named: torch.Tensor) -> torch.Tensor:
        """images [N, 3, S, S], normed; named [N, 3]: the number of each one's colour, shape and size."""
        seen = self.project(self.tower(images)[0]).mean(dim=1)
        losses = [F.cross_entropy(head(seen), of_head) for head, of_head in zip(self.heads, named.T, strict=True)]
        return torch.stack(losses).sum()

    def loss_of_names(self, images: torch.Tensor, things: torch.Tensor) -> torch.Tensor:
        """images [N, 3, S, S], normed; things [N] of the emoji world."""
        return F.cross_entropy(self.name(self.project(self.tower(images)[0]).mean(dim=1)), things)

    def loss_of_places(self, states: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        """The tower's states [N, patches, width]; here [N, tokens, 6]: colour, shape and box of what each token's place
        shows, colour -100 where that is nothing.
        """
        told = self.here(self.project(states))
        colours, shapes, boxes = told.split([len(world.PALETTE), len(world.SHAPES), 4], -1)
        there = here[..., 0] >= 0
        losses = [
            F.cross_entropy(of_all[there], here[..., n][there].long()) for n, of_all in ((0, colours), (1, shapes))
        ]
        return torch.stack(losses).sum() + 5 * (boxes - here[..., 2:])[there].abs().mean()

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """The tower's states of patches [N, patches, width] -> what the language model reads, [N, tokens, width]."""
        side = TOWER.image_size // TOWER.patch_size // 2
        grid = states.unflatten(1, (side, 2, side, 2)).permute(0, 1, 3, 2, 4, 5)
        return self.projector(grid.flatten(3).flatten(1, 2))


def chat_config(vocabulary: int) -> ChatConfig:
    return ChatConfig(
        TOWER,
        LanguageConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=FEED_FORWARD,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KEY_VALUE_HEADS,
            head_dim=WIDTH // HEADS,
            rms_norm_eps=1e-6,
            rope_theta=1e4,
            max_position_embeddings=LONGEST,
            q_norm=HEAD_NORM,
            k_norm=HEAD_NORM,
        ),
    )


def drawings() -> torch.Tensor:
    """uint8 [things, drawings, 3, S, S]: in the middle, then anywhere."""
    return torch.cat(
        (
            draw_corpus(SEED, things=world.SEEN_THINGS),
            draw_corpus(SEED + 1, things=world.SEEN_THINGS, draw=draw_anywhere),
        ),
        dim=1,
    )


def named_pictures() -> torch.Tensor:
    """Drawings of the emoji world: uint8 [things, drawings, 3, S, S]."""
    return small_pictures(draw_names(SEED, VARIANTS), TOWER.image_size)


def large_named_pictures(things: Sequence[int], count: int) -> dict[int, torch.Tensor]:
    """Some of the same drawings of some things, before they are shrunk: uint8 [count, 3, 96, 96] of each."""
    return dict(zip(things, draw_names(SEED, VARIANTS[:count], things), strict=True))


def shown_scenes() -> list[pointing.Shown]:
    """Pictures of some shapes, anywhere."""
    rng = np.random.default_rng(SEED)
    return [pointing.show(rng) for _ in range(SCENES)]


def scenes_and_places() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 [N, 3, S, S], and what is at the place of each token: see `Seeing.loss_of_places`."""
    shown, side = shown_scenes(), TOWER.image_size // TOWER.patch_size // 2
    colours, shapes = list(world.PALETTE), list(world.SHAPES)
    edges = np.arange(side + 1) / side
    here = np.full((len(shown), side, side, 6), -100, np.float32)
    for number, one in enumerate(shown):
        covered = np.zeros((side, side))
        for thing, (x0, y0, x1, y1) in zip(one.things, one.boxes, strict=True):
            wide = (np.minimum(edges[1:], x1) - np.maximum(edges[:-1], x0)).clip(0)
            high = (np.minimum(edges[1:], y1) - np.maximum(edges[:-1], y0)).clip(0)
            area = high[:, None] * wide[None]
            more = area > np.maximum(covered, 0.1 / side**2)
            here[number][more] = [colours.index(thing.colour), shapes.index(thing.shape), x0, y0, x1, y1]
            covered = np.maximum(covered, area)
    pictures = torch.from_numpy(np.stack([one.picture for one in shown])).permute(0, 3, 1, 2).contiguous()
    return pictures, torch.from_numpy(here).flatten(1, 2)


def seeing_loss(seeing: Seeing):
    pictures, things = drawings(), world.SEEN_THINGS
    numbers = {
        name: number for names in (world.PALETTE, world.SHAPES, world.SIZES) for number, name in enumerate(names)
    }
    named = torch.tensor([[numbers[thing.colour], numbers[thing.shape], numbers[thing.size]] for thing in things])

    pictures_of_names = named_pictures()
    scenes, here = scenes_and_places()

    def loss_of(rng):
        some = torch.from_numpy(rng.integers(pictures_of_names.shape[1], size=len(pictures_of_names)))
        every = torch.arange(len(pictures_of_names))
        places = torch.from_numpy(rng.integers(len(scenes), size=2 * BATCH))
        loss = seeing.loss_of_names(as_seen(pictures_of_names[every, some]), every)
        loss = loss + seeing.loss_of_places(seeing.tower(as_seen(scenes[places]))[0], here[places])
        chosen = torch.from_numpy(rng.integers(pictures.shape[1], size=len(things)))
        return loss + seeing.loss(as_seen(pictures[torch.arange(len(things)), chosen]), named)

    return loss_of
