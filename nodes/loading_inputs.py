"""The inputs that loaders have in common."""
from __future__ import annotations

import torch
from comfy_api.latest import io

PRECISIONS = {"default": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def precision_input(tooltip: str) -> io.Input:
    return io.Combo.Input("precision", options=list(PRECISIONS), default="default", optional=True, advanced=True, tooltip=tooltip)


def device_input() -> io.Input:
    """Its value goes through `device_of`."""
    return io.Combo.Input("device", options=["default", "cpu"], default="default", optional=True, advanced=True,
                          tooltip="cpu keeps the model in main memory and computes there: slow, but it takes nothing of the GPU.")


def device_of(value: str) -> str | None:
    """What the library's loading functions take."""
    return "cpu" if value == "cpu" else None
