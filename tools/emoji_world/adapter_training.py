"""Trains the emoji world's MuLan adapter with the project's own trainer, on English captions alone.

It never sees the things that are held out, nor the pairs of thing and background that are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mulan_nodes.mulan.conditioning.adapter import LanguageAdapter

from ..tinyworld import narrow
from ..tinyworld.adapter_training import UNPREFIXED_SHARE, TextStates, fit, fresh
from ..tinyworld.stages import SEED, as_pictures
from ..tinyworld.text_training import PREFIX, TextEncoder
from . import reader
from .base_training import COLOURED_SHARE, VARIANTS, Base, base_latents, sample_pictures
from .captions import english_caption
from .concepts import CHARACTERS, HELD_OUT, SEEN, english, languages
from .pictures import is_held_out, nearest

STEPS = 4000
FURTHER_STAGE = "adapter_further"
FURTHER, FURTHER_RATE, AGAIN = 1500, 8e-4, 8  # steps, learning rate; how often what it draws wrong comes, for once
SHOWN = ("en", "zh", "de", "ar", "hi", "am", "ta", "zu")  # while it trains


class Examples(torch.utils.data.Dataset):
    """Latents of some things under English captions; some without the prefix, as negatives are."""

    PER_THING = 400

    def __init__(self, latents: torch.Tensor, things: tuple[int, ...]):
        self.latents, self.things, self.light = latents, things, VARIANTS.count("")

    def __len__(self):
        return len(self.things) * self.PER_THING

    def __getitem__(self, index):
        rng = np.random.default_rng((SEED, index))
        thing, variant = self.things[index // self.PER_THING], int(rng.integers(self.light))
        if rng.random() < COLOURED_SHARE:
            seen = [place for place, on in enumerate(VARIANTS) if on and not is_held_out(thing, on)]
            variant = int(rng.choice(seen))
        text = english_caption(thing, rng, VARIANTS[variant])
        return {
            "latent": self.latents[thing, variant],
            "caption": text if rng.random() < UNPREFIXED_SHARE else PREFIX + text,
        }


def train_adapter(
    work_dir: Path,
    autoencoder: narrow.TinyAutoencoder,
    text_encoder: TextEncoder,
    base: Base,
    steps: int = STEPS,
    things: tuple[int, ...] = SEEN,
    name: str = "adapter",
    begun: LanguageAdapter | None = None,
) -> LanguageAdapter:
    """Leaves <name>/adapter.safetensors in `work_dir`: see `fit`. `things` are those it sees; begun: what is trained, a
    fresh one of the world's shape unless given.
    """
    states = TextStates(text_encoder, [english(thing) for thing in range(len(CHARACTERS))])
    examples = Examples(base_latents(work_dir, autoencoder), things)

    def scores(adapter, finished):
        for code in SHOWN:
            yield code, score(autoencoder, states, base, adapter, code)

    adapter = begun or fresh(narrow.adapter)
    return fit(adapter, work_dir / name, base, states.disturbed, examples, steps, scores, score_every=500)


def train_further(
    work_dir: Path, autoencoder: narrow.TinyAutoencoder, text_encoder: TextEncoder, base: Base, adapter: LanguageAdapter
) -> LanguageAdapter:
    """Trains an adapter on, and what it draws wrong from English names more often: see `train_adapter`."""
    states = TextStates(text_encoder, [english(thing) for thing in range(len(CHARACTERS))])
    judge, names = reader.load(), [english(thing) for thing in SEEN]

    def wrong(adapter: LanguageAdapter) -> list[int]:
        right = judge.agrees(as_pictures(draw_names(autoencoder, states, base, adapter, names)), SEEN)
        return [thing for thing, agrees in zip(SEEN, right, strict=True) if not agrees]

    def scores(adapter, finished):
        still = wrong(adapter)
        yield "en", f"{1 - len(still) / len(SEEN):.3f} of all things; wrong: {', '.join(map(english, still))}"

    again = wrong(adapter)
    print(f"{FURTHER_STAGE}: drawn wrong: {', '.join(map(english, again))}", flush=True)
    examples = Examples(base_latents(work_dir, autoencoder), (*SEEN, *again * (AGAIN - 1)))
    folder = work_dir / FURTHER_STAGE
    return fit(adapter, folder, base, states.disturbed, examples, FURTHER, scores, 250, FURTHER_RATE)


@torch.no_grad()
def draw_names(autoencoder, states: TextStates, base: Base, adapter: LanguageAdapter, texts: list[str]) -> torch.Tensor:
    """Texts in any language -> pictures [N, 3, 96, 96] in 0..1."""
    context = torch.cat(
        [adapter(states([PREFIX + text for text in texts[i : i + 64]])) for i in range(0, len(texts), 64)]
    )
    return sample_pictures(autoencoder, base, context, adapter(states([""])))


@torch.no_grad()
def score(autoencoder, states: TextStates, base: Base, adapter: LanguageAdapter, code: str, every: int = 3) -> str:
    """How many of the names in a language draw the picture that is nearest to its own of all pictures."""
    places = [thing for thing in range(len(CHARACTERS)) if languages()[code].names[thing]]
    places = [thing for thing in places if thing % every == 0 or CHARACTERS[thing] in HELD_OUT]
    drawn = draw_names(autoencoder, states, base, adapter, [str(languages()[code].names[thing]) for thing in places])
    right = nearest(drawn) == torch.tensor(places)
    held_out = torch.tensor([CHARACTERS[thing] in HELD_OUT for thing in places])
    return f"{right[~held_out].float().mean().item():.3f}, never seen {right[held_out].float().mean().item():.2f}"
