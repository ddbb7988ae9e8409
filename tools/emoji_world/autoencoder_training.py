"""Trains the emoji world's autoencoder between pictures of 96 pixels and latents of 12 x 12."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ..tinyworld.narrow import TinyAutoencoder
from ..tinyworld.stages import SEED, as_input, is_finished, train_stage
from .pictures import BACKGROUNDS, draw_corpus

STAGE = "autoencoder"
WIDTH = 32
BATCH = 8
VARIANTS = ("",) * 12 + tuple(BACKGROUNDS)
LATENT_NOISE = 0.1


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
        error = restored - images
        edges = sum((_difference(restored, axis) - _difference(images, axis)).abs().mean() for axis in (2, 3))
        values = latents.transpose(0, 1).flatten(1)
        off_scale = values.mean(dim=1).square().mean() + (values.var(dim=1) - 1).square().mean()
        return error.square().mean() + 0.1 * error.abs().mean() + 0.1 * edges + 0.003 * off_scale

    def score(copied):
        return f"{decibels(copied):.2f} dB"

    train_stage(STAGE, work_dir, model, loss_of, steps=steps, learning_rate=2e-3, average=0.99, score=score)
    return model


def _difference(images: torch.Tensor, axis: int) -> torch.Tensor:
    return images.diff(dim=axis)


@torch.no_grad()
def decibels(model: TinyAutoencoder) -> float:
    """The mean PSNR of restored pictures, drawn anew."""
    images = as_input(draw_corpus(SEED + 1, ("",)).flatten(0, 1))
    restored = torch.cat([model.taesd_decoder(model.taesd_encoder(part)) for part in images.split(16)]).clamp(0, 1)
    return (-10 * F.mse_loss(restored, images, reduction="none").mean(dim=(1, 2, 3)).log10()).mean().item()
