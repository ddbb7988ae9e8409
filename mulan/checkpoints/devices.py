"""Where a model computes and waits, and in which dtype: ComfyUI's choices for text encoders, for all loaders."""

from __future__ import annotations

from typing import NamedTuple

import comfy.model_management
import torch


class Devices(NamedTuple):
    """The two devices of a ModelPatcher."""

    load: torch.device  # where a model computes
    offload: torch.device  # where it waits


def choose_devices(device: str | None = None) -> Devices:
    """Return ComfyUI's devices of text encoders; `device="cpu"` keeps a model off the GPU."""
    if device == "cpu":
        return Devices(torch.device("cpu"), torch.device("cpu"))
    return Devices(comfy.model_management.text_encoder_device(), comfy.model_management.text_encoder_offload_device())


def choose_dtype(device: torch.device, *preferred: torch.dtype) -> torch.dtype:
    """Return the first of `preferred` (float16, bfloat16) that the device is fast with, else float32."""
    is_fast = {
        torch.float16: comfy.model_management.should_use_fp16,
        torch.bfloat16: comfy.model_management.should_use_bf16,
    }
    return next((dtype for dtype in preferred if is_fast[dtype](device)), torch.float32)
