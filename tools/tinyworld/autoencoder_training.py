"""Trains the tiny autoencoder between pictures and latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from . import narrow, world
from .stages import SEED, as_input, as_pictures, draw_corpus, is_finished, train_stage

LATENT_NOISE = 0.2


def train_autoencoder(work_dir: Path, steps: int = 2000) -> narrow.TinyAutoencoder:
    """Pictures -> latents of about unit variance -> the same pictures."""
    torch.manual_seed(SEED)
    model = narrow.TinyAutoencoder()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch declares no such overload)
    if is_finished("autoencoder", work_dir):
        model.load_state_dict(load_file(work_dir / "autoencoder.safetensors"))
        return model
    pictures = draw_corpus(SEED).flatten(0, 1)
    mean, whitening = colour_axes(pictures)

    def loss_of(rng):
        images = as_input(pictures[rng.integers(len(pictures), size=16)])
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.taesd_encoder(images)
            restored = model.taesd_decoder(latents + LATENT_NOISE * torch.randn_like(latents))
        latents, error = latents.float(), restored.float() - images
        colours = torch.einsum("ij,bjhw->bihw", whitening, F.avg_pool2d(images, 8) - mean[:, None, None])
        # Left to itself the encoder puts all colours in a row, where each is easily mistaken for its neighbours.
        off_colour = (latents[:, :3] - colours).square().mean()
        return error.square().mean() + 0.1 * error.abs().mean() + 0.01 * off_colour + 0.003 * unlike_noise(latents)

    train_stage("autoencoder", work_dir, model, loss_of, steps=steps, learning_rate=2e-3)
    print(f"autoencoder: {autoencoder_score(model)}", flush=True)
    return model


def colour_axes(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean colour [3] of the pictures' 8 x 8 squares, and a matrix [3, 3] that gives them unit variance without
    correlation.
    """
    squares = F.avg_pool2d(as_input(pictures[::10]), 8).transpose(0, 1).flatten(1)
    return squares.mean(dim=1), torch.linalg.inv(torch.linalg.cholesky(torch.cov(squares)))


def unlike_noise(latents: torch.Tensor) -> torch.Tensor:
    """How far the channels of latents [B, 4, h, w] are from zero mean, unit variance and no correlation."""
    values = latents.transpose(0, 1).flatten(1)
    return values.mean(dim=1).square().mean() + (torch.cov(values) - torch.eye(len(values))).square().mean()


@torch.no_grad()
def autoencoder_score(model: narrow.TinyAutoencoder) -> str:
    """How many restored pictures, drawn anew, read as what was drawn."""
    pictures = draw_corpus(SEED + 1, variants=4)
    restored = as_pictures(model.taesd_decoder(model.taesd_encoder(as_input(pictures.flatten(0, 1)))))
    readings = [
        (world.read(picture), thing)
        for picture, thing in zip(restored, [thing for thing in world.THINGS for _ in range(4)], strict=True)
    ]
    right = np.mean([reading.agrees(thing) for reading, thing in readings])
    strictly = np.mean([reading.agrees_strictly(thing) for reading, thing in readings])
    return f"colour and shape right in {right:.3f} of restored pictures, strictly in {strictly:.3f}"
