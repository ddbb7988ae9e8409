"""Numbers that are NaN or infinite: whose fault they are, and how to say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ..boundary.interrupts import interruptible
from .tensor_files import TensorFile

CHUNK_ELEMENTS = 2**24  # of a tensor that are looked at together


def first_not_finite(names: Iterable[str], read: Callable[[str], torch.Tensor]) -> str | None:
    """Return the first tensor that holds NaN or infinity, None where all are finite. Tensors are read one by one."""
    for name in interruptible(names):
        tensor = read(name)
        if tensor.is_floating_point() and not all(map(_is_finite, tensor.reshape(-1).split(CHUNK_ELEMENTS))):
            return name
    return None


def why_not_finite(file: TensorFile, dtype: torch.dtype, instead: str = "another precision, such as fp32") -> str:
    """Return why a model computes numbers that are not finite: its file is damaged, or they overflow in `dtype`.

    instead: what a person can choose then. Reads the file, up to the first damaged tensor.
    """
    damaged = first_not_finite(file.shapes, file.read)
    if damaged:
        return f"its {damaged} contains NaN or infinity. Download it, or convert it, again"
    return f"they overflow in {str(dtype).removeprefix('torch.')}. Choose {instead}"


def _is_finite(values: torch.Tensor) -> bool:
    # Eight bits have no `isfinite`
    return bool((values.float() if values.element_size() == 1 else values).isfinite().all())
