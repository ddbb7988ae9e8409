"""The files of a diffusion base: diffusers' folders and single files, as diffusers' models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.tensor_files import TensorFile, open_tensors, read_beside, read_object
from ..conditioning.families import FAMILIES, PIXART, SDXL, Family
from .original_layouts import (
    original_config,
    pixart_config,
    pixart_prefix,
    pixart_side,
    pixart_tensors,
    unet_config,
    vae_config,
    without_prefix,
)
from .run import import_training_package

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIXES = ("first_stage_model.", "vae.", "")
VAE_MARK = "encoder.conv_in.weight"
LATENT_CHANNELS = 4
DOWNSCALE = 8  # of the autoencoders that all families share
WEIGHTS_NAME = "diffusion_pytorch_model"
REFINER_CONTEXT_DIM = 1280
SD_SCALE, SDXL_SCALE = 0.18215, 0.13025  # of latents
_SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_PIXART_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


@dataclass(frozen=True)
class LoadedBase:
    """What a base's files hold; `scale`: of the latents; prediction is None where they do not say it."""

    model: Any
    vae: Any
    alphas_cumprod: torch.Tensor
    prediction: str | None
    scale: float
    family: Family


def load_files(path: Path, vae: Path | None, side: int) -> LoadedBase:
    """Load a base as `load_base` says, on the CPU, in the files' dtypes."""
    if path.is_dir():
        load = _load_pixart_folder if (path / "transformer").is_dir() else _load_unet_folder
        return load(path, vae)
    file = open_tensors(path)
    prefix = pixart_prefix(file.shapes)
    if prefix is not None:
        return _load_pixart_file(path, file, prefix, vae, side)
    return _load_unet_file(path, file, vae)


def check_channels(path: Path, in_channels: int, latent_channels: int) -> None:
    """Raise ValueError for a base that denoises more than latents."""
    if in_channels != latent_channels:
        raise ValueError(
            f"{path} denoises {in_channels} channels, its autoencoder gives {latent_channels}: "
            f"use a plain base, not an inpainting or other special one"
        )


def _family(path: Path, context_dim: int) -> Family:
    if context_dim == REFINER_CONTEXT_DIM:
        raise ValueError(f"{path} is SDXL's refiner, which reads no MuLan adapter: use an SDXL base")
    for family in FAMILIES:
        if family is not PIXART and family.context_dim == context_dim:
            return family
    known = ", ".join(f"{family.title} ({family.context_dim})" for family in FAMILIES if family is not PIXART)
    raise ValueError(f"{path} reads contexts of width {context_dim}; known are {known}, and PixArt's transformers")


def _diffusers() -> Any:
    """Import diffusers, which only training needs, when it is needed."""
    return import_training_package("diffusers")


def _load_unet_folder(path: Path, vae: Path | None) -> LoadedBase:
    """Load a folder as diffusers' `save_pretrained` writes it."""
    unet = _load_part(path, "unet", _diffusers().UNet2DConditionModel)
    family = _family(path, unet.config.cross_attention_dim)
    return _with_schedule(path, unet, vae, family)


def _load_pixart_folder(path: Path, vae: Path | None) -> LoadedBase:
    config = read_object(read_beside(path / "transformer", "config.json") or b"{}", f"{path}/transformer/config.json")
    if config.get("_class_name") not in ("PixArtTransformer2DModel", "Transformer2DModel"):
        raise ValueError(
            f"{path} holds a transformer of another model ({config.get('_class_name')}): expected a folder of SD1.5, "
            f"SD2.1, SDXL or PixArt"
        )
    transformer = _load_part(path, "transformer", _diffusers().PixArtTransformer2DModel)
    return _with_schedule(path, transformer, vae, PIXART)


def _with_schedule(path: Path, model: Any, vae: Path | None, family: Family) -> LoadedBase:
    autoencoder = _load_vae(vae) if vae else _load_part(path, "vae", _diffusers().AutoencoderKL)
    try:
        scheduler = _diffusers().DDPMScheduler.from_pretrained(path, subfolder="scheduler", local_files_only=True)
    except OSError as error:
        raise ValueError(
            f"{path} has no noise schedule: scheduler/scheduler_config.json: {_first_line(error)}"
        ) from error
    scale = autoencoder.config.scaling_factor
    prediction = scheduler.config.prediction_type
    return LoadedBase(model, autoencoder, scheduler.alphas_cumprod, prediction, scale, family)


def _load_part(path: Path, name: str, part: Any) -> Any:
    plain = (path / name / f"{WEIGHTS_NAME}.safetensors").is_file() or any((path / name).glob("*.index.json"))
    try:
        return part.from_pretrained(
            path, subfolder=name, use_safetensors=True, local_files_only=True, variant=None if plain else "fp16"
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be loaded as a diffusers folder: {name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _load_unet_file(path: Path, file: TensorFile, vae: Path | None) -> LoadedBase:
    """Load a file in the original layout.

    diffusers is given the original configuration, read from the tensors' shapes, because it would fetch one from the
    network otherwise.
    """
    special = next((name for name in ("edm_mean", "edm_vpred.sigma_max") if name in file.shapes), None)
    if special:
        raise ValueError(f"{path} has the noise of EDM ({special}), which adapters are not trained with")
    try:
        of_unet = unet_config(without_prefix(file.shapes, UNET_PREFIX))
        family = _family(path, of_unet["context_dim"])  # before gigabytes are read
        check_channels(path, of_unet["in_channels"], LATENT_CHANNELS)
        if vae is None and _vae_prefix(file) is None:
            raise KeyError(VAE_MARK)
    except KeyError as error:
        raise ValueError(
            f"{path} is not a whole SD1.5, SD2.1 or SDXL checkpoint: its UNet or autoencoder lacks {error}"
            + (" (--vae names another autoencoder)" if error.args[0] == VAE_MARK else "")
        ) from error
    config = original_config(of_unet, {"ch_mult": [1]})
    unet = _from_single_file(path, file, UNET_PREFIX, UNET_PREFIX, _diffusers().UNet2DConditionModel, config)
    stored = file.metadata.get("modelspec.prediction_type") or file.metadata.get("modelspec.predict_key")
    prediction = "v_prediction" if stored == "v" or "v_pred" in file.shapes else stored
    alphas = _alphas_cumprod(_SD_BETAS, zero_snr="ztsnr" in file.shapes)
    scale = SDXL_SCALE if family is SDXL else SD_SCALE
    return LoadedBase(unet, _load_vae(vae or path), alphas, prediction, scale, family)


def _load_pixart_file(path: Path, file: TensorFile, prefix: str, vae: Path | None, side: int) -> LoadedBase:
    """Load PixArt's transformer, in the authors' layout or diffusers'."""
    if vae is None and _vae_prefix(file) is None:
        raise ValueError(
            f"{path} holds PixArt's transformer alone: name its autoencoder with --vae "
            f"(alpha: that of SD1.5; sigma: that of SDXL)"
        )
    known = {name.removeprefix(prefix): name for name in file.shapes if name.startswith(prefix)}
    outside = tuple(p for p in (*VAE_PREFIXES, "text_encoders.") if p)
    try:
        tensors = pixart_tensors(
            {name: file.read(stored) for name, stored in known.items() if not name.startswith(outside)}
        )
        table = file.shapes.get(f"{prefix}pos_embed")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        config = pixart_config(shapes, pixart_side(table, side // DOWNSCALE))
    except KeyError as error:
        raise ValueError(f"{path} is not a whole PixArt transformer: it lacks {error}") from error
    try:
        with torch.device("meta"):
            transformer = _diffusers().PixArtTransformer2DModel(**config)
        positions = _diffusers().PixArtTransformer2DModel(**{**config, "num_layers": 0}).pos_embed.pos_embed
        transformer.load_state_dict(tensors, assign=True)
        transformer.pos_embed.pos_embed = positions  # a buffer that no file has
    except RuntimeError as error:
        raise ValueError(f"{path}: its tensors are incomplete or not PixArt's: {_first_line(error)}") from error
    scale = SD_SCALE if config["use_additional_conditions"] else SDXL_SCALE  # ComfyUI tells alpha from sigma by these
    return LoadedBase(transformer, _load_vae(vae or path), _alphas_cumprod(_PIXART_BETAS), "epsilon", scale, PIXART)


def _load_vae(path: Path) -> Any:
    """Load an autoencoder from a diffusers folder, or from a file in the original layout, alone or in a checkpoint."""
    autoencoder = _diffusers().AutoencoderKL
    if path.is_dir():
        if (path / "vae").is_dir():
            return _load_part(path, "vae", autoencoder)
        return _load_part(path.parent, path.name, autoencoder)
    file = open_tensors(path)
    prefix = _vae_prefix(file)
    try:
        config = original_config({}, vae_config(without_prefix(file.shapes, prefix or "")))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} holds no autoencoder in the original layout (it lacks {error}): name another with --vae, or the "
            f"folder of one in diffusers' layout"
        ) from error
    return _from_single_file(path, file, prefix or "", VAE_PREFIXES[0], autoencoder, config)


def _vae_prefix(file: TensorFile) -> str | None:
    """Return what stands before the names of the autoencoder; None where there is none in the original layout."""
    return next((prefix for prefix in VAE_PREFIXES if f"{prefix}{VAE_MARK}" in file.shapes), None)


def _from_single_file(path: Path, file: TensorFile, prefix: str, named: str, part: Any, config: dict[str, Any]) -> Any:
    """Build a model of diffusers from the tensors behind a prefix; `named` is the prefix that diffusers expects."""
    tensors = {named + name.removeprefix(prefix): file.read(name) for name in file.shapes if name.startswith(prefix)}
    try:
        return part.from_single_file(tensors, original_config=config)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: its {prefix}* tensors are incomplete or of another model: {_first_line(error)}"
        ) from error


def _alphas_cumprod(betas: dict[str, Any], zero_snr: bool = False) -> torch.Tensor:
    scheduler = _diffusers().DDPMScheduler(**betas, num_train_timesteps=1000, rescale_betas_zero_snr=zero_snr)
    return scheduler.alphas_cumprod
