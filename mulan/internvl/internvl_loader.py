"""A checkpoint, and its text encoder from wherever it is -> InternVL in the host's care."""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.model_management
import comfy.ops
import comfy.sd
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher

from ..checkpoints.tensor_files import WrongFileError, describe_path
from ..conditioning.clip import load_text_encoder
from ..conditioning.model_files import TextConfig, open_text_encoder
from ..conditioning.text_encoder import MulanTextEncoder
from .internvl_files import ContrastiveFile, Part, open_internvl, unexpected
from .internvl_model import LoadedInternVL
from .preprocessing import FRAMINGS

__all__ = ["FRAMINGS", "LoadedInternVL", "load_internvl"]

Devices = tuple[torch.device, torch.device]  # where a model computes, and where it waits


def load_internvl(
    checkpoint: Path | str,
    mode: str = "C",
    text_encoder: Path | str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    clip: comfy.sd.CLIP | None = None,
) -> LoadedInternVL:
    """Loads InternVL-C or -G (`mode`) from what `open_internvl` reads; tensors stay mapped from the file until they are needed.

    The LLaMA is that of `clip`, a MuLan CLIP (so that there is one copy of it), or of the file `text_encoder`, or the checkpoint's own.
    `device="cpu"` keeps all but a given `clip` off the GPU. `dtype`: what the tower computes in (None: what suits the device).
    Raises WrongFile for files that cannot serve or do not fit together, ValueError for another kind of CLIP, MemoryError, torch.OutOfMemoryError.
    """
    file = open_internvl(Path(checkpoint))
    model, *readers = file.parts(mode)
    if clip is None:
        text_file = open_text_encoder(Path(text_encoder)) if text_encoder is not None else file.text_encoder()
        check_pair(file, text_file.config, describe_path(text_file.file.path))
        clip = load_text_encoder(text_file, device)
    else:
        _check_clip(file, clip)
    stray = unexpected(file)
    if stray:
        logging.warning(
            "InternVL: %s holds %d tensors that are not used, the first is %s",
            describe_path(file.file.path),
            len(stray),
            stray[0],
        )
    devices = _devices(device)
    dtype = dtype or _compute_dtype(devices[0])
    beside_llama = clip.patcher.load_device, clip.patcher.offload_device
    readers = [_filled(file, reader, beside_llama, torch.float32) for reader in readers]
    return LoadedInternVL(
        file.file.path, _filled(file, model, devices, dtype), readers[0] if readers else None, clip, dtype
    )


def _filled(file: ContrastiveFile, part: Part, devices: Devices, dtype: torch.dtype) -> ModelPatcher:
    """A part of the checkpoint with its weights; 8-bit ones become `dtype` when they are used."""
    operations, made_on = comfy.ops.manual_cast, "meta"
    if file.is_quantised:  # 8-bit weights are moved to where their layer was made: "meta" would lose them
        operations, made_on = comfy.ops.mixed_precision_ops({}, dtype, full_precision_mm=True), "cpu"
    module = part.build(operations=operations, device=made_on)
    module.load_state_dict(dict(file.tensors(part)), assign=True)
    module.train(False).requires_grad_(False)
    return CoreModelPatcher(module, load_device=devices[0], offload_device=devices[1])


def _check_clip(file: ContrastiveFile, clip) -> None:
    """Raises ValueError where a given CLIP is not MuLan's, WrongFile where it does not fit."""
    model = getattr(clip, "cond_stage_model", None)
    if not isinstance(model, MulanTextEncoder):
        raise ValueError(
            f"the CLIP's text encoder is a {type(model).__name__}, and InternVL reads texts with the LLaMA inside MuLan's CLIP: "
            f"connect a CLIP of the MuLan Loader, or none."
        )
    check_pair(file, model.internvl.config, f"{model.origin['text_encoder']} of the CLIP")


def check_pair(file: ContrastiveFile, text: TextConfig, of: str) -> None:
    """Raises WrongFile where the checkpoint was not trained with a LLaMA of this size."""
    wanted, last = file.model.config.text_width, max(file.reader.config.layers, default=0) if file.reader else 0
    if (text.width, text.layers > last) != (wanted, True):
        raise WrongFileError(
            f"{describe_path(file.file.path)} was trained with a text encoder whose states are {wanted} wide, of more than {last} layers; "
            f"those of {of} are {text.width} wide, of {text.layers} layers: take the one that belongs to it."
        )


def _devices(device: str | None) -> Devices:
    if device == "cpu":
        return torch.device("cpu"), torch.device("cpu")
    return comfy.model_management.text_encoder_device(), comfy.model_management.text_encoder_offload_device()


def _compute_dtype(device: torch.device) -> torch.dtype:
    """float16, in which the authors measured the published scores, where the device has it."""
    if comfy.model_management.should_use_fp16(device):
        return torch.float16
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
