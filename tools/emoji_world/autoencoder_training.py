"""Trains the emoji world's autoencoder between pictures of 96 pixels and latents of 12 x 12."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ..tinyworld.narrow import TinyAutoencoder
from ..tinyworld.stages import SEED, as_input, as_pictures, is_finished, train_stage
from . import reader
from .concepts import CHARACTERS, english
from .pictures import BACKGROUNDS, draw_corpus

STAGE, DECODER_STAGE = "autoencoder", "decoder_further"
WIDTH = 32
BATCH = 8
VARIANTS = ("",) * 12 + tuple(BACKGROUNDS)
LATENT_NOISE = 0.1
FURTHER, FURTHER_RATE = 1200, 1.5e-3  # steps, learning rate
AGAIN = 10  # how often what it restores wrong comes, for once


def train_autoencoder(work_dir: Path, steps: int = 5000) -> TinyAutoencoder:
    """Pictures -> latents of about unit variance -> the same pictures."""
    torch.manual_seed(SEED)
    model = TinyAutoencoder(WIDTH)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch declares no such overload)
    if is_finished(STAGE, work_dir):
        model.load_state_dict(load_file(work_dir / f"{STAGE}.safetensors"))
        return model
    pictures = draw_corpus(SEED, VARIANTS).flatten(0, 1)

    def loss_of(rng):
        images = as_input(pictures[rng.integers(len(pictures), size=BATCH)])
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.taesd_encoder(images)
            restored = model.taesd_decoder(latents + LATENT_NOISE * torch.randn_like(latents))
        latents, restored = latents.float(), restored.float()
        values = latents.transpose(0, 1).flatten(1)
        off_scale = values.mean(dim=1).square().mean() + (values.var(dim=1) - 1).square().mean()
        return _restoring_loss(restored, images) + 0.003 * off_scale

    def score(copied):
        return f"{decibels(copied):.2f} dB"

    train_stage(STAGE, work_dir, model, loss_of, steps=steps, learning_rate=2e-3, average=0.99, score=score)
    return model


def train_decoder_further(work_dir: Path, model: TinyAutoencoder) -> TinyAutoencoder:
    """Trains the decoder on, and what it restores wrong more often; the latents, and so the base, stay as they are."""
    if is_finished(DECODER_STAGE, work_dir):
        model.load_state_dict(load_file(work_dir / f"{DECODER_STAGE}.safetensors"))
        return model
    pictures = draw_corpus(SEED + 2, VARIANTS)
    with torch.no_grad():
        latents = torch.stack([model.taesd_encoder(as_input(of_thing)) for of_thing in pictures])
    again = restored_wrong(model)
    print(f"{DECODER_STAGE}: restored wrong: {', '.join(map(english, again))}", flush=True)
    things = np.array([*range(len(CHARACTERS)), *again * (AGAIN - 1)])

    def loss_of(rng):
        chosen, variants = rng.choice(things, BATCH), rng.integers(len(VARIANTS), size=BATCH)
        clean = latents[chosen, variants]
        restored = model.taesd_decoder(clean + LATENT_NOISE * torch.randn_like(clean))
        return _restoring_loss(restored, as_input(pictures[chosen, variants]))

    def score(copied):
        return f"{decibels(copied):.2f} dB, restored wrong: {', '.join(map(english, restored_wrong(copied)))}"

    train_stage(
        DECODER_STAGE,
        work_dir,
        model,
        loss_of,
        steps=FURTHER,
        learning_rate=FURTHER_RATE,
        average=0.995,
        score=score,
        score_every=300,
    )
    return model


def _restoring_loss(restored: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    error = restored - images
    edges = sum((_difference(restored, axis) - _difference(images, axis)).abs().mean() for axis in (2, 3))
    return error.square().mean() + 0.1 * error.abs().mean() + 0.1 * edges


def _difference(images: torch.Tensor, axis: int) -> torch.Tensor:
    return images.diff(dim=axis)


@torch.no_grad()
def decibels(model: TinyAutoencoder) -> float:
    """The mean PSNR of restored pictures, drawn anew."""
    images, restored = _restored(model)
    return (-10 * F.mse_loss(restored, images, reduction="none").mean(dim=(1, 2, 3)).log10()).mean().item()


@torch.no_grad()
def restored_wrong(model: TinyAutoencoder) -> list[int]:
    """The things whose restored pictures, drawn anew, the strict reader does not pass."""
    right = reader.load().agrees(as_pictures(_restored(model)[1]), range(len(CHARACTERS)))
    return [thing for thing, agrees in enumerate(right) if not agrees]


def _restored(model: TinyAutoencoder) -> tuple[torch.Tensor, torch.Tensor]:
    images = as_input(draw_corpus(SEED + 1, ("",)).flatten(0, 1))
    return images, torch.cat([model.taesd_decoder(model.taesd_encoder(part)) for part in images.split(16)]).clamp(0, 1)
