"""Trains the emoji world's MuLan adapter with the project's own trainer, on English captions alone.

It never sees the things that are held out, nor the pairs of thing and background that are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch.nn import functional as F
from transformers import LlamaModel

from mulan_nodes.mulan.conditioning.adapter import LanguageAdapter
from mulan_nodes.mulan.training import trainer

from ..tinyworld import narrow
from ..tinyworld.adapter_training import UNPREFIXED_SHARE, TextStates
from ..tinyworld.base_training import alphas_cumprod
from ..tinyworld.stages import SEED, as_input
from ..tinyworld.text_training import PREFIX
from .base_training import COLOURED_SHARE, VARIANTS, Base, base_latents, sample_pictures
from .captions import english_caption
from .concepts import CHARACTERS, HELD_OUT, SEEN, english, languages
from .pictures import draw_corpus, is_held_out

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
    text_encoder: LlamaModel,
    base: Base,
    steps: int = 4000,
    things: tuple[int, ...] = SEEN,
    name: str = "adapter",
) -> LanguageAdapter:
    """Leaves <name>/adapter.safetensors (published names, narrow, float32) in `work_dir`; `things` are those it sees.

    An interrupted run goes on from its last state, with other noise on the states than it would have had.
    """
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(work_dir / "tokenizer.model"))
    states = TextStates(text_encoder, tokenizer, [english(thing) for thing in range(len(CHARACTERS))])
    base.requires_grad_(False)
    torch.manual_seed(SEED)
    adapter = narrow.adapter()
    trainer.init_weights(adapter, SEED)
    settings = trainer.TrainSettings(
        steps=steps,
        batch_size=32,
        learning_rate=1.5e-3,
        seed=SEED,
        high_noise_share=0.4,
        high_noise_weight=True,
        ema=0.995,
        save_every=250,
        validate_every=500,
        out_dir=work_dir / name,
        result_dtype="fp32",
    )

    def report(step, steps, loss, seconds_left):
        if step % 100 == 0:
            print(f"{name}: step {step} of {steps}, loss {loss:.4f}, {seconds_left:.0f} s left", flush=True)

    def validate(step, adapter):
        for code in SHOWN:
            print(f"{name}: {code}: {score(autoencoder, states, base, adapter, code)}", flush=True)

    latents = base_latents(work_dir, autoencoder)
    return trainer.train_adapter(
        adapter,
        base,
        states.disturbed,
        Examples(latents, things),
        alphas_cumprod(),
        settings,
        report=report,
        validate=validate,
        resume=True,
    )


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


def nearest(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [N, 3, 96, 96] -> the thing whose own picture each is nearest to."""
    own = as_input(draw_corpus(SEED, ("",))[:, 0])
    return torch.cdist(F.avg_pool2d(pictures, 2).flatten(1), F.avg_pool2d(own, 2).flatten(1)).argmin(1)
