"""What an InternVL calls pictures of the emoji world that it has never seen, in each language."""

from __future__ import annotations

import comfy.sd
import numpy as np
import torch

from mulan_nodes.mulan.internvl.internvl_model import LoadedInternVL
from mulan_nodes.mulan.internvl.zeroshot import NO_TEMPLATES, embed_labels

from ..tinyworld.chat_examination import reply
from .concepts import CHARACTERS, languages
from .pictures import draw
from .talks import TALKED_ABOUT, ask

SEED = 79  # not training's
GOAL = 0.95


def look(loaded: LoadedInternVL, seed: int = SEED) -> torch.Tensor:
    """The vectors of a new drawing of each thing: [130, E]."""
    rng = np.random.default_rng(seed)
    return loaded.embed_images([_picture(thing, rng) for thing in range(len(CHARACTERS))])


def examine(loaded: LoadedInternVL, pictures: torch.Tensor, code: str) -> tuple[float, float]:
    """The share of pictures whose best label, of all names in a language, is their own; and of names whose best picture
    is.
    """
    named = [(thing, name) for thing, name in enumerate(languages()[code].names) if name]
    vectors = embed_labels(loaded, [name for _, name in named], NO_TEMPLATES)
    likeness = pictures[[thing for thing, _ in named]] @ vectors.T
    own = torch.arange(len(named))
    labels, recall = (likeness.argmax(way).cpu() == own for way in (1, 0))
    return labels.float().mean().item(), recall.float().mean().item()


def examine_talk(clip: comfy.sd.CLIP, code: str, count: int, seed: int = SEED) -> float:
    """The share of `count` things that are called by their name, to the letter, when asked in a language."""
    rng, right = np.random.default_rng(seed), []
    for thing in rng.permutation(TALKED_ABOUT).tolist():
        exchange = ask(thing, code, rng)
        if exchange and len(right) < count:
            right.append(reply(clip, exchange.question, [_picture(thing, rng)]) == exchange.answer)
    return float(np.mean(right))


def _picture(thing: int, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(draw(thing, rng)).float() / 255
