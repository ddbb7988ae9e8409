"""A checkpoint -> the model in ComfyUI's care: streamed, evicted and freed as any other model is."""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch

from ...mulan.checkpoints.devices import choose_devices, choose_dtype, log_device, streaming_memory
from ...mulan.checkpoints.finite import first_not_finite, why_not_finite
from ...mulan.checkpoints.linear import operations_for
from ...mulan.checkpoints.tensor_files import WrongFileError, describe_path
from . import prompt_templates
from .keys import internlm2, super_link
from .prefix_cache import PrefixCache
from .special_tokens import DETECT, PERCEPTION_COUNT, POSE
from .super_link import TABLE_OF
from .visionllm import VisionLLM
from .visionllm_files import VisionLLMFile, open_visionllm, unused_tensors

# NaN and infinity in these go through to what the language model says. A decoder's may end where it looks at nothing.
LANGUAGE_PARTS = ("tower", "bridge", "language")


class LoadedVisionLLM:
    """The model with what it is asked through: tokenizer, prompt template, image settings, and the last prefixes.

    `patcher` is ComfyUI's; `load` has it load the weights. `dtype` is what the model computes in, but for its decoders.
    """

    def __init__(
        self,
        file: VisionLLMFile,
        model: VisionLLM,
        patcher: comfy.model_patcher.ModelPatcher,
        dtype: torch.dtype,
        decoder_dtype: torch.dtype,
    ):
        self.file = file
        self.model = model
        self.patcher = patcher
        self.dtype = dtype
        self.decoder_dtype = decoder_dtype
        self.tokenizer = file.tokenizer()
        self.token_ids = self.tokenizer.ids
        self.settings = file.settings
        uses_internlm2 = file.parts["language"].names is internlm2
        self.template = prompt_templates.INTERNLM2 if uses_internlm2 else prompt_templates.VICUNA
        self.prefix_cache = PrefixCache()
        patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_DETACH, self._detached)

    @property
    def name(self) -> str:
        return self.file.file.path.name

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    def check_finite(self, values: torch.Tensor, what: str) -> torch.Tensor:
        """Return what the model gave. Raises ValueError that says why where it holds NaN or infinity."""
        if torch.isfinite(values).all():
            return values
        cause = why_not_finite(self.file.file, self.dtype)
        raise ValueError(f"{describe_path(self.file.file.path)} gives {what} that are not finite: {cause}.")

    def _detached(self, _, entirely: bool) -> None:
        # ComfyUI also detaches a model that it is about to load again; prefixes go only where it frees the weights.
        if entirely:
            self.prefix_cache.clear()

    def load(self, memory: int = 0) -> VisionLLM:
        """Have ComfyUI load the weights, with `memory` bytes to spare for the computation.

        Where the device cannot hold them all, they are sent over one by one, and the largest needs room too.
        """
        memory += streaming_memory(self.model, self.device, memory)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory)
        return self.model


def load_visionllm(path: Path | str, device: str | None = None, dtype: torch.dtype | None = None) -> LoadedVisionLLM:
    """Load a published folder, or a file converted from it. `device="cpu"` keeps it off the GPU.

    dtype: what it computes in, whatever the file holds. None: what suits the device, and float32 for the decoders,
    whose boxes bfloat16 moves by a hundredth of the image. Tensors stay mapped from the file until they are needed.
    Raises WrongFileError for a file that cannot be used.
    """
    file = open_visionllm(Path(path))
    devices = choose_devices(device, sees_images=True)
    exact, decoder_dtype = dtype is torch.float32, dtype or torch.float32
    dtype = dtype or choose_dtype(devices.load, torch.bfloat16, torch.float16)
    quantized_ops = operations_for(dtype, exact) if file.is_quantized else None
    model = file.build(operations=operations_for(None), language_operations=quantized_ops, device="meta")
    _check_embeddings(file)
    _check_decoders(file)
    model.load_state_dict(dict(file.tensors()), assign=True)
    model.train(False).requires_grad_(False)
    unused = unused_tensors(file)
    if unused:
        logging.warning(
            "VisionLLM: %s has %d tensors that are not used, the first is %s",
            describe_path(file.file.path),
            len(unused),
            unused[0],
        )
    log_device(f"VisionLLM: {file.file.path.name}", devices.load, dtype)
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=devices.load, offload_device=devices.offload)
    return LoadedVisionLLM(file, model, patcher, dtype, decoder_dtype)


def _check_embeddings(file: VisionLLMFile) -> None:
    """Raise WrongFileError where the file has not as many embeddings behind a decoder's tool token as prompts have."""
    for table, rows in file.parts["super_link"].config.rows.items():
        if table in (TABLE_OF[DETECT], TABLE_OF[POSE]) and rows != PERCEPTION_COUNT:
            raise WrongFileError(
                f"{describe_path(file.file.path)}: {super_link.PREFIX}{table}.weight has {rows} rows, expected "
                f"{PERCEPTION_COUNT}. Download it again."
            )


def _check_decoders(file: VisionLLMFile) -> None:
    """Raise WrongFileError where a weight is NaN or infinite that results would not show."""
    names = {
        name for ours, source in file.sources().items() if not ours.startswith(LANGUAGE_PARTS) for name in source.names
    }
    damaged = first_not_finite(sorted(names), file.file.read)
    if damaged:
        raise WrongFileError(
            f"{describe_path(file.file.path)} is damaged: its {damaged} contains NaN or infinity. "
            f"Download it, or convert it, again."
        )
