"""Validation images: what the prompts draw, by the denoiser and the autoencoder that training holds in memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..boundary.files import WholeFile
from .base_models import DiffusionBase
from .diffusion import sample

STEPS = 30
CFG = 7.5


def draw_validation(
    base: DiffusionBase, encode_text: Callable[..., Any], prompts: Sequence[str], side: int, seed: int, folder: Path
) -> Callable[[int, Any], None]:
    """Return a `validate` that draws the prompts, always from the same noise, into one image in the run's folder.

    The contexts are those that MuLan Loader's CLIP gives, the empty one as its negative; the sampler is DDIM.
    """

    def draw(step: int, adapter: Any) -> None:
        device = next(adapter.parameters()).device
        sizes = torch.tensor([[side, side, 0, 0, side, side]])
        with torch.no_grad():
            context = adapter(encode_text(list(prompts), sizes.expand(len(prompts), -1)).to(device))
            empty = adapter(encode_text([""], sizes).to(device))
        shape = (base.latent_channels, side // base.downscale_factor, side // base.downscale_factor)
        latents = sample(base.denoiser, context, empty, base.alphas_cumprod, STEPS, CFG, seed, shape, base.prediction)
        images = torch.cat([base.decode(latent[None]) for latent in latents])
        save_image_row(images, folder / f"validation-{step:06d}.png")

    return draw


def save_image_row(images: torch.Tensor, path: Path) -> None:
    """Write images [B, 3, H, W] in -1..1 side by side, as one PNG. Raises UnwritableError."""
    from PIL import Image

    row = torch.cat(list(images.cpu()), dim=2)
    pixels = ((row + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    data = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(data, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    with WholeFile(path) as file:
        file.write(data.getbuffer())
