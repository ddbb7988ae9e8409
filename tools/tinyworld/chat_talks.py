"""What the tiny InternVL that talks learns to talk about: drawings of shapes, alone, in pairs and enlarged, and things
by their names in many languages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from mulan_nodes.mulan.internvl_chat.chat_preprocessing import preprocess_tiles

from ..emoji_world import talks as of_names
from ..emoji_world.concepts import trained_languages
from . import world
from .chat_seeing import TOWER, drawings, large_named_pictures, named_pictures
from .talker import SYSTEM, Talker, prompt_of_exchanges
from .talks import MOST, Exchange, draw_talk, draw_talk_of_two

TWO_PICTURES = 0.25  # the share of batches of talks about two pictures
ENLARGED = 0.1  # the share of batches whose pictures are so big that they become tiles
TILED_DRAWINGS = 8  # of each thing
TILED_NAMES = 0.4  # the share of batches of names whose pictures are as large as they are drawn, 96 x 96: tiles
NAMES_ASKED = 8  # of one picture, each in another language
FORGOTTEN_SYSTEM = 0.1  # the share of talks without a system message


class Talks:
    """What talks are drawn from."""

    def __init__(self):
        self.shapes, self.named = drawings(), named_pictures()[list(of_names.TALKED_ABOUT)]
        self._large = list(large_named_pictures(of_names.TALKED_ABOUT, TILED_DRAWINGS).values())

    def loss(self, talker: Talker, count: int, names: float, rng: np.random.Generator) -> torch.Tensor:
        """Of about `count` talks; `names` is the share of batches that ask what a thing is called."""
        prompts, images = (self._about_names if rng.random() < names else self._about_shapes)(count, rng)
        states = talker.seeing.tower(torch.cat(images))[0]
        return talker.loss(prompts, states.split([len(tiles) for tiles in images]))

    def _about_names(self, count: int, rng: np.random.Generator) -> tuple[list[str], list[torch.Tensor]]:
        drawn, count = (self._large, count // 2) if rng.random() < TILED_NAMES else (self.named, count)
        places = rng.integers(len(of_names.TALKED_ABOUT), size=count).tolist()
        asked = [
            of_names.draw_exchanges(of_names.TALKED_ABOUT[place], NAMES_ASKED, trained_languages(), rng)
            for place in places
        ]
        images = [_tiles(drawn[place][rng.integers(len(drawn[place]))]) for place in places]
        return [_prompt(exchanges, 1, rng) for exchanges in asked], images

    def _about_shapes(self, count: int, rng: np.random.Generator) -> tuple[list[str], list[torch.Tensor]]:
        things, side, drawn = world.SEEN_THINGS, TOWER.image_size, self.shapes
        if rng.random() < ENLARGED:
            side, count, drawn = side * int(rng.integers(2, 4)), count // 4, drawn[:, :TILED_DRAWINGS]
        exchanges = int(rng.integers(1, MOST + 1))  # the same in a batch, for rows of about one length
        draw = draw_talk_of_two if rng.random() < TWO_PICTURES else draw_talk
        talks = [draw(rng, things, exchanges) for _ in range(count)]
        of_things = [drawn[things.index(thing)] for talk in talks for thing in talk.things]
        images = [_tiles(of_thing[rng.integers(len(of_thing))], side) for of_thing in of_things]
        return [_prompt(talk.exchanges, len(talk.things), rng) for talk in talks], images


def _tiles(picture: torch.Tensor, side: int | None = None) -> torch.Tensor:
    """A picture uint8 [3, H, W] as the tower takes it, [tiles, 3, S, S], where `side` is given enlarged."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    if side is not None:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return preprocess_tiles(image, TOWER.image_size)


def _prompt(exchanges: Sequence[Exchange], pictures: int, rng: np.random.Generator) -> str:
    return prompt_of_exchanges(exchanges, pictures, SYSTEM if rng.random() >= FORGOTTEN_SYSTEM else "")
