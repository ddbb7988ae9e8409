"""Trains the emoji world's diffusion base: a UNet and its own English CLIP together, on the autoencoder's latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from mulan_nodes.mulan.training import diffusion

from ..tinyworld import base_training as tiny_base
from ..tinyworld import narrow
from ..tinyworld.stages import SEED, as_pictures, is_finished, train_stage
from . import reader
from .captions import ENGLISH, coloured, english_caption, english_sentence, with_article
from .concepts import CHARACTERS, english
from .pictures import BACKGROUNDS, draw_corpus, nearest, own_pictures, picture_vectors
from .text_training import EMBEDDING

STAGE, FURTHER_STAGE = "base", "base_further"
# Of the UNet. At half the resolution, too, each place learns from the borders where it is; on one level of 12 x 12 a
# thousand steps gave colours and no shapes. Half the heads are as good and faster.
LEVELS, HEADS = 2, 4
LATENT = (4, 12, 12)
BATCH = 32
VARIANTS = ("",) * 30 + tuple(BACKGROUNDS) * 3
COLOURED_SHARE = 0.25
EMPTY_SHARE = 0.1
STEPS, CFG = 20, 3.0  # of the pictures that scores are taken from
FURTHER, FURTHER_RATE, AGAIN = 900, 4e-4, 12  # steps, learning rate; how often what it draws wrong comes, for once
SEEDS = 4  # pictures of each thing


def english_texts() -> list[str]:
    """Every English caption, and ""."""
    texts = [""]
    for thing in range(len(CHARACTERS)):
        texts += [english_sentence(thing, template) for template in ENGLISH]
        for name in (english(thing), with_article(english(thing))):
            texts += [coloured(name, "en", background) for background in BACKGROUNDS]
    return list(dict.fromkeys(texts))


class Base(tiny_base.Base):
    """With what only its training needs.

    What a caption's thing looks like must be seen in CLIP's states, as in the published one's: the adapter then finds a
    space whose neighbours look alike.
    """

    def __init__(self):
        super().__init__(english_texts(), HEADS, LEVELS)
        self.looks = nn.Linear(narrow.CONTEXT_WIDTH, EMBEDDING)


def base_latents(work_dir: Path, autoencoder: narrow.TinyAutoencoder) -> torch.Tensor:
    """The latents of `VARIANTS` of all things, kept on disk."""
    path = work_dir / "latents.pt"
    if not path.exists():
        torch.save(tiny_base.latents_of(autoencoder, draw_corpus(SEED, VARIANTS)), path)
    return torch.load(path, weights_only=True)


def train_base(work_dir: Path, autoencoder: narrow.TinyAutoencoder, steps: int = 12000) -> Base:
    """Learns all things under English captions only."""
    torch.manual_seed(SEED)
    model = Base()
    if is_finished(STAGE, work_dir):
        model.load_state_dict(load_file(work_dir / f"{STAGE}.safetensors"))
        return model
    latents, looks = base_latents(work_dir, autoencoder), picture_vectors(EMBEDDING)
    alphas = tiny_base.alphas_cumprod()
    model.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (no such overload declared)

    def loss_of(rng):
        things = rng.integers(len(latents), size=BATCH)
        clean, texts = _examples(latents, things, rng)
        context = model.context(texts)
        loss = tiny_base.denoising_loss(model, clean, context, alphas, rng)
        seen = F.normalize(model.looks(context[:, rng.integers(24, tiny_base.CLIP_ROWS, size=4)]), dim=-1).mean(1)
        said = torch.tensor([bool(text) for text in texts])
        told = F.cross_entropy(10 * (seen @ looks.T)[said], torch.from_numpy(things)[said])
        return loss + 0.02 * told

    def score(copied):
        return score_of(autoencoder, copied, work_dir / "base.png")

    train_stage(
        STAGE, work_dir, model, loss_of, steps=steps, learning_rate=2e-3, average=0.998, score=score, score_every=1000
    )
    return model


def _examples(latents: torch.Tensor, things: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, list[str]]:
    """Some latents of the things, and captions of them, a few of which are empty."""
    light = VARIANTS.count("")
    variants = rng.integers(light, size=len(things))
    with_colour = rng.random(len(things)) < COLOURED_SHARE
    variants[with_colour] = light + rng.integers(latents.shape[1] - light, size=with_colour.sum())
    texts = [english_caption(thing, rng, VARIANTS[variant]) for thing, variant in zip(things, variants, strict=True)]
    empty = rng.random(len(things)) < EMPTY_SHARE
    return latents[things, variants], ["" if nothing else text for nothing, text in zip(empty, texts, strict=True)]


def train_base_further(work_dir: Path, autoencoder: narrow.TinyAutoencoder, model: Base) -> Base:
    """Trains the UNet on, and what it draws wrong more often; the text states that it reads stay as they are."""
    unet = model.unet
    if is_finished(FURTHER_STAGE, work_dir):
        unet.load_state_dict(load_file(work_dir / f"{FURTHER_STAGE}.safetensors"))
        return model
    latents, alphas = base_latents(work_dir, autoencoder), tiny_base.alphas_cumprod()
    again = drawn_wrong(autoencoder, model)
    print(f"{FURTHER_STAGE}: drawn wrong: {', '.join(map(english, again))}", flush=True)
    things = np.array([*range(len(CHARACTERS)), *again * (AGAIN - 1)])
    unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (no such overload declared)

    def loss_of(rng):
        clean, texts = _examples(latents, rng.choice(things, BATCH), rng)
        with torch.no_grad():
            context = model.context(texts)
        return tiny_base.denoising_loss(model, clean, context, alphas, rng)

    def score(copied):
        still = drawn_wrong(autoencoder, model, copied)
        return f"drawn wrong: {', '.join(map(english, still))}"

    train_stage(
        FURTHER_STAGE,
        work_dir,
        unet,
        loss_of,
        steps=FURTHER,
        learning_rate=FURTHER_RATE,
        average=0.995,
        score=score,
        score_every=300,
    )
    return model


@torch.no_grad()
def drawn_wrong(autoencoder: narrow.TinyAutoencoder, model: Base, unet: nn.Module | None = None) -> list[int]:
    """The things of which the strict reader does not pass at least two of `SEEDS` pictures from their English names.

    unet: instead of the base's own.
    """
    unet = unet or model.unet
    context, empty = model.context(list(map(english, range(len(CHARACTERS))))), model.context([""])
    judge, right = reader.load(), np.zeros(len(CHARACTERS))
    for seed in range(SEEDS):
        drawn = as_pictures(sample_pictures(autoencoder, lambda *args: unet(*args).sample, context, empty, 1000 * seed))
        right += judge.agrees(drawn, range(len(CHARACTERS)))
    return [thing for thing, often in enumerate(right) if often < SEEDS - 1]


@torch.no_grad()
def sample_pictures(
    autoencoder: narrow.TinyAutoencoder,
    denoiser: Callable,
    context: torch.Tensor,
    empty: torch.Tensor,
    seed: int = SEED,
) -> torch.Tensor:
    """Contexts [N, R, 96] -> pictures [N, 3, 96, 96] in 0..1 (DDIM, `STEPS`, `CFG`)."""
    parts = []
    for first in range(0, len(context), 65):
        latents = diffusion.sample(
            denoiser, context[first : first + 65], empty, tiny_base.alphas_cumprod(), STEPS, CFG, seed + first, LATENT
        )
        parts.append(autoencoder.taesd_decoder(latents).clamp(0, 1))
    return torch.cat(parts)


@torch.no_grad()
def score_of(autoencoder: narrow.TinyAutoencoder, model: Base, sheet: Path) -> str:
    """One picture of each thing from its English name: how near it is to the thing's own, and a sheet of them all."""
    from PIL import Image

    wanted = own_pictures()
    drawn = sample_pictures(
        autoencoder, model, model.context(list(map(english, range(len(CHARACTERS))))), model.context([""])
    )
    rows = []
    for first in range(0, len(drawn), 13):
        rows.append(torch.cat(list(wanted[first : first + 13]), dim=2))
        rows.append(torch.cat(list(drawn[first : first + 13]), dim=2))
    pixels = (torch.cat(rows, dim=1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(sheet)
    near = (nearest(drawn) == torch.arange(len(drawn))).float().mean().item()
    return f"nearest picture right {near:.3f}, mean error {(drawn - wanted).square().mean().sqrt().item():.3f}"
