"""A checkpoint, and its text encoder from wherever it is -> InternVL, whose memory ComfyUI manages."""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.sd
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher

from ..checkpoints.devices import Devices, choose_devices, choose_dtype, log_device
from ..checkpoints.linear import operations_for
from ..checkpoints.tensor_files import WrongFileError, describe_path
from ..conditioning.clip import load_text_encoder
from ..conditioning.model_files import TextConfig, open_text_encoder
from ..conditioning.text_encoder import MulanTextEncoder
from .internvl_files import ContrastiveFile, Part, open_internvl, unexpected
from .internvl_model import LoadedInternVL
from .preprocessing import FRAMINGS

__all__ = ["FRAMINGS", "LoadedInternVL", "load_internvl"]

# The authors measured the published scores in float16.
COMPUTE_DTYPES = (torch.float16, torch.bfloat16)


def load_internvl(
    checkpoint: Path | str,
    mode: str = "C",
    text_encoder: Path | str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    clip: comfy.sd.CLIP | None = None,
) -> LoadedInternVL:
    """Load InternVL-C or -G (`mode`) from what `open_internvl` reads; tensors stay mapped from the file until they are
    needed.

    The LLaMA is that of `clip`, a MuLan CLIP (so that there is one copy of it), or of the file `text_encoder`, or the
    checkpoint's own. `device="cpu"` keeps all but a given `clip` off the GPU. `dtype`: what the tower computes in
    (None: what suits the device). Raises WrongFileError for files that cannot be used or do not fit together,
    ValueError for another kind of CLIP, MemoryError, torch.OutOfMemoryError.
    """
    file = open_internvl(Path(checkpoint))
    model, *readers = file.parts(mode)
    devices = choose_devices(device, sees_images=True)
    if clip is None:
        text_file = open_text_encoder(Path(text_encoder)) if text_encoder is not None else file.text_encoder()
        check_pair(file, text_file.config, describe_path(text_file.file.path))
        clip = load_text_encoder(text_file, devices)
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
    exact = dtype is torch.float32
    dtype = dtype or choose_dtype(devices.load, *COMPUTE_DTYPES)
    log_device(f"InternVL: {file.file.path.name}", devices.load, dtype)
    beside_llama = Devices(clip.patcher.load_device, clip.patcher.offload_device)
    readers = [_filled(file, reader, beside_llama, torch.float32, exact) for reader in readers]
    tower = _filled(file, model, devices, dtype, exact)
    return LoadedInternVL(file.file, tower, readers[0] if readers else None, clip, dtype)


def _filled(file: ContrastiveFile, part: Part, devices: Devices, dtype: torch.dtype, exact: bool) -> ModelPatcher:
    """Build a part of the checkpoint with its weights. `exact`: no layer's input is quantized."""
    operations, made_on = operations_for(None), "meta"
    if file.is_quantized:  # quantized weights are moved to where their layer was made: "meta" would lose them
        operations, made_on = operations_for(dtype, exact), "cpu"
    module = part.build(operations=operations, device=made_on)
    module.load_state_dict(dict(file.tensors(part)), assign=True)
    module.train(False).requires_grad_(False)
    return CoreModelPatcher(module, load_device=devices.load, offload_device=devices.offload)


def _check_clip(file: ContrastiveFile, clip) -> None:
    """Raise ValueError where a given CLIP is not MuLan's, WrongFileError where it does not fit."""
    model = getattr(clip, "cond_stage_model", None)
    if not isinstance(model, MulanTextEncoder):
        raise ValueError(
            f"the CLIP's text encoder is a {type(model).__name__}, and InternVL reads texts with the LLaMA inside "
            "MuLan's CLIP: "
            f"connect a CLIP of the MuLan Loader, or none."
        )
    if not isinstance(model.internvl.config, TextConfig):
        raise ValueError(
            f"the CLIP's text encoder {model.origin['text_encoder']} is a chat model's language model, and InternVL "
            "reads texts with its own LLaMA (InternVL-14B-224px): connect a CLIP of that, or none."
        )
    check_pair(file, model.internvl.config, f"{model.origin['text_encoder']} of the CLIP")


def check_pair(file: ContrastiveFile, text: TextConfig, text_name: str) -> None:
    """Raise WrongFileError where the checkpoint was not trained with a LLaMA of this size."""
    hidden_size = file.model.config.text_hidden_size
    last_layer = max(file.reader.config.layers, default=0) if file.reader else 0
    if text.hidden_size != hidden_size or text.num_hidden_layers <= last_layer:
        raise WrongFileError(
            f"{describe_path(file.file.path)} was trained with a text encoder of hidden size {hidden_size} and more "
            f"than {last_layer} "
            f"layers; {text_name} has hidden size {text.hidden_size} and {text.num_hidden_layers} layers: choose the "
            "one that belongs to it."
        )
