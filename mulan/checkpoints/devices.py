"""Where a model computes and waits, and in which dtype: ComfyUI's choices for text encoders, for all loaders, but for
what sees images.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, cast

import comfy.model_management
import torch
from comfy.model_management import VRAMState
from torch import nn


class Devices(NamedTuple):
    """The two devices of a ModelPatcher."""

    load: torch.device  # where a model computes
    offload: torch.device  # where it waits


def choose_devices(device: str | None = None, sees_images: bool = False) -> Devices:
    """Return ComfyUI's devices of text encoders; `device="cpu"` keeps a model off the GPU.

    With --lowvram and --novram, where these would be the CPU, a model that sees images computes on the GPU, which its
    weights are streamed to: an image is thousands of tokens.
    """
    management = comfy.model_management
    if device == "cpu":
        return Devices(torch.device("cpu"), torch.device("cpu"))
    load = management.text_encoder_device()
    is_streamed = management.vram_state in (VRAMState.LOW_VRAM, VRAMState.NO_VRAM)
    if sees_images and is_streamed and management.should_use_fp16(prioritize_performance=False):
        load = management.get_torch_device()
    return Devices(load, management.text_encoder_offload_device())


def log_device(model: str, device: torch.device, dtype: torch.dtype) -> None:
    """Say in the log where and in what a model computes; a warning where a GPU is not used although nobody asked."""
    has_gpu = comfy.model_management.get_torch_device().type != "cpu"
    idle = device.type == "cpu" and has_gpu
    logging.log(
        logging.WARNING if idle else logging.INFO,
        "%s computes on %s in %s%s",
        model,
        device,
        str(dtype).removeprefix("torch."),
        ", not on the GPU" if idle else "",
    )


def choose_dtype(device: torch.device, *preferred: torch.dtype) -> torch.dtype:
    """Return the first of `preferred` (float16, bfloat16) that the device is fast with, else float32."""
    is_fast = {
        torch.float16: comfy.model_management.should_use_fp16,
        torch.bfloat16: comfy.model_management.should_use_bf16,
    }
    return next((dtype for dtype in preferred if is_fast[dtype](device)), torch.float32)


def streaming_memory(model: nn.Module, device: torch.device, memory: int = 0) -> int:
    """Return the bytes of the largest weight where the device cannot hold all of them and `memory` beside, else 0.

    ComfyUI then sends those over one by one that do not fit, when they are needed.
    """
    sizes = [weight.nbytes for weight in model.parameters()]
    total = cast(int, comfy.model_management.get_total_memory(device))
    return max(sizes) if sum(sizes) + memory > total else 0
