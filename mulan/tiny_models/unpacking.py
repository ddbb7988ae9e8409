"""The files of the tiny models: which there are, and writing those that are missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..boundary.files import naming
from ..boundary.interrupts import interruptible
from ..checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from ..checkpoints.tensor_files import CONFIG, WrongFileError, open_tensors
from . import full_width
from .packs import pack_path, pack_version, read_pack

VERSION = "tiny_world_version"
_ROWS = 64  # of a tensor, written at once


@dataclass(frozen=True)
class TinyModel:
    """A file for ComfyUI: its folder below models/, its name, and how the tensors of a pack become its own."""

    folder: str
    name: str
    pack: str
    tensors_of: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = dict
    config: str | None = None  # where the pack's metadata has none


CHECKPOINT = TinyModel("checkpoints", "tiny_sd15.safetensors", "world", full_width.checkpoint)
TEXT_ENCODER = TinyModel(
    "text_encoders",
    "tiny_internvl.safetensors",
    "world",
    full_width.text_encoder,
    json.dumps({"num_attention_heads": 4, "rms_norm_eps": 1e-6}),
)
ADAPTER = TinyModel("mulan", "tiny_sd15_adapter.safetensors", "world", full_width.adapter)
PATTERN_LORA = TinyModel(
    "loras", "tiny_pattern_lora.safetensors", "companions", partial(full_width.lora, prefix="pattern_lora.")
)
LCM_LORA = TinyModel("loras", "tiny_lcm_lora.safetensors", "companions", partial(full_width.lora, prefix="lcm_lora."))
CONTROLNET = TinyModel("controlnet", "tiny_layout_controlnet.safetensors", "companions", full_width.controlnet)
INTERNVL = TinyModel("internvl", "tiny_internvl_vision.safetensors", "internvl")
CHAT = TinyModel("internvl_chat", "tiny_internvl_chat.safetensors", "internvl_chat")
VISIONLLM = TinyModel("visionllm", "tiny_visionllm.safetensors", "visionllm")
TINY_MODELS = (CHECKPOINT, TEXT_ENCODER, ADAPTER, PATTERN_LORA, LCM_LORA, CONTROLNET, INTERNVL, CHAT, VISIONLLM)


def write_tiny_models(
    paths: Mapping[TinyModel, Path], progress: Callable[[int, int, Path], None] | None = None
) -> list[Path]:
    """Write each model to its path, unless the very file is there; return what was written.

    `progress` gets how many files are written, how many there are to write, and the one that comes next. Each file
    appears whole or not at all. Raises UnwritableError, and ComfyUI's InterruptProcessingException after Stop.
    """
    versions = {name: pack_version(pack_path(name)) for name in {model.pack for model in paths}}
    missing = {model: path for model, path in paths.items() if version_of(path) != versions[model.pack]}
    packs = {name: read_pack(pack_path(name)) for name in {model.pack for model in missing}}
    for index, (model, path) in enumerate(interruptible(missing.items())):
        if progress is not None:
            progress(index, len(missing), path)
        stored, metadata = packs[model.pack]
        config = {CONFIG: model.config} if model.config else {}
        _write(path, model.tensors_of(stored), {**metadata, VERSION: versions[model.pack], **config})
    return list(missing.values())


def version_of(path: Path) -> str | None:
    """Return the version of the pack that a file is from; None where it is none of these files, or not whole."""
    if not path.is_file():
        return None
    try:
        return open_tensors(path).metadata.get(VERSION)
    except (OSError, WrongFileError):
        return None


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with SafetensorsWriter(path, specs, metadata) as writer:
        for name, tensor in interruptible(tensors.items()):
            if tensor.ndim < 2:
                writer.write(name, tensor)
                continue
            for first in range(0, len(tensor), _ROWS):  # most rows are zeros, and those take no room on the disk
                writer.write(name, tensor[first : first + _ROWS], first)
