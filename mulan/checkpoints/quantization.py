"""Weights in 8 bits, as ComfyUI keeps them: `<layer>.weight`, `<layer>.weight_scale` and the mark `<layer>.comfy_quant`.

Source: ComfyUI 0.30, comfy/ops.py (`mixed_precision_ops`) and the layouts of comfy_kitchen. Everything goes by runs of rows, so that a
tensor of any size takes a few dozen megabytes beside itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .safetensors_writer import TensorSpec

PLAIN = torch.float16  # whatever is not quantised
ELEMENTS_AT_ONCE = 4 * 2**20
NAN = "values that are infinite or no numbers (NaN)"


class NotFiniteError(ValueError):
    """Weights that are NaN or infinite, or too large for float16."""


@dataclass(frozen=True)
class Quantization:
    """One of the host's formats: `largest` is what the largest weight of a row (or of the tensor) becomes.

    `embeddings`: whether the table of embeddings is worth it. 4 random layers of full width lie 0.056 from their source with a float16 table and
    0.070 with int8, which saves 0.2 of 6.9 GB; fp8 goes from 0.168 to 0.203.
    """

    format: str
    dtype: torch.dtype
    largest: float
    per_row: bool
    embeddings: bool

    def takes(self, name: str) -> bool:
        """Whether this tensor of the LLaMA is kept in 8 bits."""
        return name.endswith("_proj.weight") or self.embeddings and name == "model.embed_tokens.weight"

    def mark(self) -> torch.Tensor:
        return torch.frombuffer(bytearray(json.dumps({"format": self.format}).encode()), dtype=torch.uint8)


INT8 = Quantization("int8_tensorwise", torch.int8, 127.0, per_row=True, embeddings=True)
FP8 = Quantization("float8_e4m3fn", torch.float8_e4m3fn, 448.0, per_row=False, embeddings=False)
FORMATS: dict[str, Quantization | None] = {"int8": INT8, "fp8": FP8, "fp16": None}


def tensor_layout(name: str, shape: tuple[int, ...], quantization: Quantization | None) -> dict[str, TensorSpec]:
    """What the weight `name` of this shape becomes in the file; without a quantisation, itself in float16."""
    if quantization is None:
        return {name: TensorSpec(PLAIN, shape)}
    layer = name.removesuffix(".weight")
    return {
        name: TensorSpec(quantization.dtype, shape),
        f"{layer}.weight_scale": TensorSpec(torch.float32, (shape[0], 1) if quantization.per_row else ()),
        f"{layer}.comfy_quant": TensorSpec(torch.uint8, tuple(quantization.mark().shape)),
    }


def quantize_chunks(
    name: str, tensor: torch.Tensor, quantization: Quantization | None
) -> Iterator[tuple[str, torch.Tensor, int]]:
    """The tensors of `tensor_layout` run by run: (name, rows, number of the first row). Raises NotFinite."""
    if quantization is None:
        yield from cast_chunks(name, tensor, PLAIN)
        return
    layer = name.removesuffix(".weight")
    yield f"{layer}.comfy_quant", quantization.mark(), 0
    scale = None
    if not quantization.per_row:
        scale = _scale(name, _largest(tensor), quantization)
        yield f"{layer}.weight_scale", scale, 0
    for rows, first in _runs(tensor):
        rows = rows.float()
        if quantization.per_row:
            scale = _scale(name, rows.abs().amax(dim=1, keepdim=True), quantization)
            yield f"{layer}.weight_scale", scale, first
        scaled = (rows / scale).clamp_(-quantization.largest, quantization.largest)
        yield name, (scaled if quantization.dtype.is_floating_point else scaled.round_()).to(quantization.dtype), first


def cast_chunks(
    name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, torch.Tensor, int]]:
    """A tensor in `dtype`, its own by default, as `quantize_chunks` gives tensors. Raises NotFinite."""
    for rows, first in _runs(tensor):
        cast = rows.to(dtype or tensor.dtype)
        if not torch.isfinite(cast).all():
            too_large = torch.isfinite(rows).all()
            raise NotFiniteError(
                f"{name} holds {f'values up to {rows.abs().max().item():.3g}, too large for {dtype}' if too_large else NAN}"
            )
        yield name, cast, first


def _runs(tensor: torch.Tensor) -> Iterator[tuple[torch.Tensor, int]]:
    if tensor.ndim == 0:
        yield tensor, 0
        return
    count = max(1, ELEMENTS_AT_ONCE * len(tensor) // max(1, tensor.numel()))
    for first in range(0, len(tensor), count):
        yield tensor[first : first + count], first


def plain_dtype(name: str, tensor: torch.Tensor) -> torch.dtype:
    """The 16-bit numbers that hold a tensor which is not quantised: `PLAIN`, or bfloat16 where a value is too large for it. Raises NotFinite."""
    if tensor.dtype == PLAIN:
        return PLAIN
    return PLAIN if _finite(name, _largest(tensor)) <= torch.finfo(PLAIN).max else torch.bfloat16


def _largest(tensor: torch.Tensor) -> torch.Tensor:
    """The largest absolute value; NaN where there is one."""
    return torch.stack([rows.float().abs().amax() for rows, _ in _runs(tensor)]).amax()


def _scale(name: str, largest: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    return torch.where(_finite(name, largest) > 0, largest / quantization.largest, 1.0)


def _finite(name: str, largest: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(largest).all():
        raise NotFiniteError(f"{name} holds {NAN}")
    return largest
