"""The rotation of weights and inputs that ComfyUI calls `convrot`: it evens out what a few channels would take over."""

from __future__ import annotations

import torch


def rotation(size: int) -> torch.Tensor:
    """Return the rotation [size, size] of ComfyUI's `convrot`: a Hadamard matrix, its own inverse.

    `size` is a power of 4.
    """
    part = 1 - 2 * torch.eye(4, device="cpu").flip(1)
    matrix = part
    while len(matrix) < size:
        matrix = torch.kron(matrix, part)
    return matrix / size**0.5
