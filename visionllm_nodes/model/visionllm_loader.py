"""A checkpoint -> the model in the host's care: streamed, evicted and freed as any other model is."""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import torch

from ...mulan.checkpoints.tensor_files import describe_path
from ...mulan.internvl import intern_vit_keys
from . import prompt_templates
from .image_inputs import PictureSettings
from .keys import internlm2
from .prefix_cache import PictureMemory
from .visionllm import VisionLLM
from .visionllm_files import VisionFile, open_visionllm, unexpected


class LoadedVisionLLM:
    """The model with what it is asked through: tokenizer, conversation format, picture settings, and the last pictures it saw.

    `patcher` is the host's; `ready` has it load the weights. `dtype` is what the model computes in.
    """

    def __init__(
        self, file: VisionFile, model: VisionLLM, patcher: comfy.model_patcher.ModelPatcher, dtype: torch.dtype
    ):
        self.file = file
        self.model = model
        self.patcher = patcher
        self.dtype = dtype
        self.tokenizer = file.tokenizer()
        self.ids = self.tokenizer.ids
        self.settings = PictureSettings(**{**_tower_settings(file), **file.told.get("picture_settings", {})})
        self.format = (
            prompt_templates.INTERNLM2 if file.parts["language"].names is internlm2 else prompt_templates.VICUNA
        )
        self.memory = PictureMemory()
        patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_DETACH, self._detached)

    @property
    def name(self) -> str:
        return self.file.file.path.name

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    def _detached(self, _, entirely: bool) -> None:
        """The host also detaches a model that it is about to load again; only where it frees the weights the pictures go too."""
        if entirely:
            self.memory.clear()

    def ready(self, memory: int = 0) -> VisionLLM:
        """Has the host load the weights, with `memory` bytes to spare for the computation."""
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory)
        return self.model


def load_visionllm(path: Path | str, device: str | None = None, dtype: torch.dtype | None = None) -> LoadedVisionLLM:
    """Loads a published folder, or a file made of it by `dev.py convert`. `device="cpu"` keeps it off the GPU.

    `dtype`: what it computes in, whatever the file holds (None: what suits the device). Tensors stay mapped from the file until they are
    needed. Raises WrongFile for a file that cannot serve.
    """
    file = open_visionllm(Path(path))
    cpu = torch.device("cpu")
    load_device = cpu if device == "cpu" else comfy.model_management.text_encoder_device()
    offload_device = cpu if device == "cpu" else comfy.model_management.text_encoder_offload_device()
    dtype = dtype or _compute_dtype(load_device)
    quantised = comfy.ops.mixed_precision_ops({}, dtype, full_precision_mm=True) if file.is_quantised else None
    model = file.build(operations=comfy.ops.manual_cast, language_operations=quantised, device="meta")
    model.load_state_dict(dict(file.tensors()), assign=True)
    model.train(False).requires_grad_(False)
    stray = unexpected(file)
    if stray:
        logging.warning(
            "VisionLLM: %s holds %d tensors that are not used, the first is %s",
            describe_path(file.file.path),
            len(stray),
            stray[0],
        )
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=load_device, offload_device=offload_device)
    return LoadedVisionLLM(file, model, patcher, dtype)


def _compute_dtype(device: torch.device) -> torch.dtype:
    if comfy.model_management.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32


def _tower_settings(file: VisionFile) -> dict:
    """Upstream's settings of the two vision towers: CLIP sees up to 4 tiles, InternViT up to 6."""
    tower = file.parts["tower"]
    return {"tower": tower.config.picture, "tiles": 6 if tower.names is intern_vit_keys else PictureSettings.tiles}
