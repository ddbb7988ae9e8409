"""Frozen diffusion bases to train against: SD1.5 and SD2.1, from a diffusers folder or a single file, without the
network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.tensor_files import open_tensors
from ..conditioning.families import FAMILIES, SD15, Family
from .diffusion import PREDICTIONS, Denoiser
from .run import import_training_package

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
WEIGHTS_NAME = "diffusion_pytorch_model"
SD15_NUM_HEADS = 8
SD21_HEAD_DIM = 64


@dataclass(frozen=True)
class DiffusionBase:
    """A frozen base: images [B, 3, H, W] in -1..1, latents [B, latent_channels, h, w] scaled for the denoiser.

    h and w are H and W / downscale_factor.
    """

    denoiser: Denoiser
    encode_images: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]
    alphas_cumprod: torch.Tensor
    prediction: str
    latent_channels: int
    downscale_factor: int
    context_dim: int
    family: Family
    encoder_fingerprint: str  # differs from one image encoder to another


def load_base(
    path: Path | str,
    device="cpu",
    dtype: torch.dtype = torch.float32,
    prediction: str | None = None,
    gradient_checkpointing: bool = False,
) -> DiffusionBase:
    """Load UNet (in `dtype`), autoencoder (always float32) and noise schedule; text encoders are not read.

    `prediction` overrides what the base says; a single file of SD2.1 does not say it and needs it.
    `gradient_checkpointing` takes more time and less memory. Raises ValueError for what is not an SD1.5 or SD2.1 base.
    """
    path = Path(path)
    load = _load_folder if path.is_dir() else _load_single_file
    unet, vae, alphas_cumprod, stored_prediction = load(path)
    family = _family(path, unet.config.cross_attention_dim)
    if unet.config.in_channels != vae.config.latent_channels:
        raise ValueError(
            f"{path} denoises {unet.config.in_channels} channels, its autoencoder gives {vae.config.latent_channels}: "
            f"use a plain base, not an inpainting or other special one"
        )
    prediction = prediction or stored_prediction or ("epsilon" if family is SD15 else None)
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"{path} predicts {prediction or 'what it does not say'}: name {' or '.join(PREDICTIONS)} "
            f"(--prediction; SD2.1 base at 512 pixels is epsilon, SD2.1 at 768 is v_prediction)"
        )
    # diffusers' own `to` warns about every change of dtype, even where it has nothing to warn about.
    torch.nn.Module.to(unet.requires_grad_(False), device, dtype)
    torch.nn.Module.to(vae.requires_grad_(False), device, torch.float32)
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return _make_base(unet, vae, alphas_cumprod, prediction, family)


def _make_base(unet, vae, alphas_cumprod: torch.Tensor, prediction: str, family: Family) -> DiffusionBase:
    scale = vae.config.scaling_factor

    def denoiser(x, t, context):
        return unet(x.to(unet.dtype), t, encoder_hidden_states=context.to(unet.dtype)).sample.float()

    @torch.no_grad()
    def encode_images(images):
        return vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode().float() * scale

    @torch.no_grad()
    def decode(latents):
        return vae.decode(latents.to(vae.device, vae.dtype) / scale).sample.float().clamp(-1, 1)

    encoder = hashlib.blake2b(digest_size=8)
    for name in ("encoder.conv_in.weight", "encoder.conv_out.weight"):
        encoder.update(vae.get_parameter(name).cpu().numpy().tobytes())
    return DiffusionBase(
        denoiser,
        encode_images,
        decode,
        alphas_cumprod,
        prediction,
        latent_channels=vae.config.latent_channels,
        downscale_factor=2 ** (len(vae.config.block_out_channels) - 1),
        context_dim=unet.config.cross_attention_dim,
        family=family,
        encoder_fingerprint=f"{encoder.hexdigest()} {scale}",
    )


def _family(path: Path, context_dim: int) -> Family:
    for family in FAMILIES:
        if family.context_dim == context_dim:
            return family
    known = ", ".join(f"{family.title} ({family.context_dim})" for family in FAMILIES)
    raise ValueError(f"{path} reads contexts of width {context_dim}; known are {known}")


def _diffusers() -> tuple[Any, Any, Any]:
    """Import the classes of diffusers, which only training needs, when they are needed."""
    diffusers: Any = import_training_package("diffusers")
    return diffusers.AutoencoderKL, diffusers.DDPMScheduler, diffusers.UNet2DConditionModel


def _load_folder(path: Path):
    """Load unet, vae, alphas_cumprod and prediction type from a folder as diffusers' `save_pretrained` writes it."""
    autoencoder_class, scheduler_class, unet_class = _diffusers()
    parts = {}
    for name, part in (("unet", unet_class), ("vae", autoencoder_class)):
        plain = (path / name / f"{WEIGHTS_NAME}.safetensors").is_file() or any((path / name).glob("*.index.json"))
        try:
            parts[name] = part.from_pretrained(
                path, subfolder=name, use_safetensors=True, local_files_only=True, variant=None if plain else "fp16"
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be loaded as a diffusers folder: {name}: {_first_line(error)}") from error
    try:
        scheduler = scheduler_class.from_pretrained(path, subfolder="scheduler", local_files_only=True)
    except OSError as error:
        raise ValueError(
            f"{path} has no noise schedule: scheduler/scheduler_config.json: {_first_line(error)}"
        ) from error
    return parts["unet"], parts["vae"], scheduler.alphas_cumprod, scheduler.config.prediction_type


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _load_single_file(path: Path):
    """Load unet, vae, alphas_cumprod and prediction type (None where it is not stored) from a file in the original
    layout.

    diffusers is given the original configuration, read from the tensors' shapes, because it would fetch one from the
    network otherwise.
    """
    autoencoder_class, scheduler_class, unet_class = _diffusers()
    file = open_tensors(path)
    try:
        config = original_config(file.shapes)
    except KeyError as error:
        raise ValueError(
            f"{path} is not a whole SD1.5 or SD2.1 checkpoint: its UNet or autoencoder lacks {error}"
        ) from error
    _family(path, config["model"]["params"]["unet_config"]["params"]["context_dim"])  # before gigabytes are read
    parts = []
    for prefix, part in ((UNET_PREFIX, unet_class), (VAE_PREFIX, autoencoder_class)):
        tensors = {name: file.read(name) for name in file.shapes if name.startswith(prefix)}
        try:
            parts.append(part.from_single_file(tensors, original_config=config))
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path}: its {prefix}* tensors are incomplete or not of SD1.5 or SD2.1: {_first_line(error)}"
            ) from error
    schedule = scheduler_class(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    stored = file.metadata.get("modelspec.prediction_type") or file.metadata.get("modelspec.predict_key")
    return *parts, schedule.alphas_cumprod, "v_prediction" if stored == "v" else stored


def original_config(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """Return the configuration that a checkpoint of these tensors was made with. Raises KeyError for another model."""
    return {
        "model": {
            "params": {
                "unet_config": {"params": _unet_config(_without_prefix(shapes, UNET_PREFIX))},
                "first_stage_config": {"params": {"ddconfig": _vae_config(_without_prefix(shapes, VAE_PREFIX))}},
            }
        }
    }


def _without_prefix(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _unet_config(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """Read the original `unet_config` from the tensors.

    They do not tell heads: SD1.5 has 8, SD2.1 heads of 64 channels.
    """
    levels, block = [[]], 1
    while any(f"input_blocks.{block}.0.{kind}.weight" in shapes for kind in ("op", "in_layers.0")):
        if f"input_blocks.{block}.0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append(f"input_blocks.{block}.")
        block += 1
    channels, in_channels = shapes["input_blocks.0.0.weight"][:2]
    attention = [level for level, blocks in enumerate(levels) if f"{blocks[0]}1.proj_in.weight" in shapes]
    first = f"{levels[attention[0] if attention else 0][0]}1."
    linear = len(shapes[f"{first}proj_in.weight"]) == 2
    return {
        "in_channels": in_channels,
        "out_channels": shapes["out.2.weight"][0],
        "model_channels": channels,
        "channel_mult": [shapes[f"{blocks[0]}0.out_layers.3.weight"][0] // channels for blocks in levels],
        "num_res_blocks": len(levels[0]),
        "attention_resolutions": [2**level for level in attention],
        "transformer_depth": 1,
        "context_dim": shapes[f"{first}transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_in_transformer": linear,
        **({"num_head_channels": SD21_HEAD_DIM} if linear else {"num_heads": SD15_NUM_HEADS}),
    }


def _vae_config(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """Read the original autoencoder's `ddconfig` from the tensors."""
    channels, in_channels = shapes["encoder.conv_in.weight"][:2]
    levels = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.down."))
    return {
        "in_channels": in_channels,
        "out_ch": shapes["decoder.conv_out.weight"][0],
        "ch": channels,
        "ch_mult": [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] // channels for level in range(levels)],
        "num_res_blocks": len({name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")}),
        "z_channels": shapes["decoder.conv_in.weight"][1],
    }
