"""Frozen diffusion bases to train against, from a diffusers folder or a single file, without the network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..checkpoints.file_content import FileContent
from ..conditioning.families import PIXART, SD21, SDXL, Family
from .base_files import LoadedBase, check_channels, load_files
from .denoisers import pixart_denoiser, plain_denoiser, sdxl_denoiser
from .diffusion import PREDICTIONS, Denoiser

_SIDES = {SDXL: 1024}


@dataclass(frozen=True)
class DiffusionBase:
    """A frozen base: images [B, 3, H, W] in -1..1, latents [B, latent_channels, h, w] scaled for the denoiser.

    h and w are H and W / downscale_factor; images' sides are best multiples of `size_multiple`. side: of the images
    that its kind was trained with. context_dim: the width of what cross-attention reads. text_hidden_size: the width of
    the text states that the MODEL's own projection reads, None where the adapter makes the context. size_embedding:
    SDXL's. model, autoencoder: what holds the weights.
    """

    denoiser: Denoiser
    encode_images: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]
    alphas_cumprod: torch.Tensor
    prediction: str
    latent_channels: int
    downscale_factor: int
    size_multiple: int
    side: int
    context_dim: int
    family: Family
    encoder_fingerprint: str  # differs from one image encoder to another
    fingerprint: str  # of the denoiser's file, the same on every machine
    model: nn.Module
    autoencoder: nn.Module
    text_hidden_size: int | None = None
    size_embedding: nn.Module | None = None


def load_base(
    path: Path | str,
    device="cpu",
    dtype: torch.dtype = torch.float32,
    prediction: str | None = None,
    gradient_checkpointing: bool = False,
    vae: Path | None = None,
    side: int = 1024,
) -> DiffusionBase:
    """Load denoiser (in `dtype`), autoencoder (always float32) and noise schedule; text encoders are not read.

    `prediction` overrides what the base says; a single file of SD2.1 does not say it and needs it. `vae`, a file or a
    folder, stands in for the base's own; a single file of PixArt's transformer needs it. `side`, in pixels: where the
    files do not tell what PixArt was trained at. `gradient_checkpointing` takes more time and less memory. Raises
    ValueError for what is not a base of a family.
    """
    path = Path(path)
    loaded = load_files(path, vae, side)
    model, autoencoder = loaded.model, loaded.vae
    check_channels(path, model.config.in_channels, autoencoder.config.latent_channels)
    prediction = prediction or loaded.prediction or (None if loaded.family is SD21 else "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"{path} predicts {prediction or 'what it does not say'}: name {' or '.join(PREDICTIONS)} "
            f"(--prediction; SD2.1 base at 512 pixels is epsilon, SD2.1 at 768 is v_prediction)"
        )
    # diffusers' own `to` warns about every change of dtype, even where it has nothing to warn about.
    torch.nn.Module.to(model.requires_grad_(False), device, dtype)
    torch.nn.Module.to(autoencoder.requires_grad_(False), device, torch.float32)
    if gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return _make_base(path, loaded, prediction)


def _make_base(path: Path, loaded: LoadedBase, prediction: str) -> DiffusionBase:
    model, vae, scale, family = loaded.model, loaded.vae, loaded.scale, loaded.family
    downscale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
    text_hidden_size = size_embedding = None
    side = _SIDES.get(family, 768 if prediction == "v_prediction" else 512)
    if family is PIXART:
        side = model.config.sample_size * downscale_factor
        context_dim, text_hidden_size = model.inner_dim, model.config.caption_channels
        denoiser, steps = pixart_denoiser(model, downscale_factor), model.config.patch_size
    else:
        context_dim, steps = model.config.cross_attention_dim, 2 ** (len(model.config.block_out_channels) - 1)
        denoiser, size_embedding = sdxl_denoiser(model) if family is SDXL else (plain_denoiser(model), None)

    @torch.no_grad()
    def encode_images(images):
        return vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode().float() * scale

    @torch.no_grad()
    def decode(latents):
        return vae.decode(latents.to(vae.device, vae.dtype) / scale).sample.float().clamp(-1, 1)

    encoder = hashlib.blake2b(digest_size=8)
    for name in ("encoder.conv_in.weight", "encoder.conv_out.weight"):
        encoder.update(vae.get_parameter(name).cpu().numpy().tobytes())
    weights = next((path / name for name in ("transformer", "unet") if (path / name).is_dir()), path)
    return DiffusionBase(
        denoiser,
        encode_images,
        decode,
        loaded.alphas_cumprod,
        prediction,
        latent_channels=vae.config.latent_channels,
        downscale_factor=downscale_factor,
        size_multiple=downscale_factor * steps,
        side=side,
        context_dim=context_dim,
        family=family,
        encoder_fingerprint=f"{encoder.hexdigest()} {scale}",
        fingerprint=FileContent(weights).fingerprint() or "",
        model=model,
        autoencoder=vae,
        text_hidden_size=text_hidden_size,
        size_embedding=size_embedding,
    )
