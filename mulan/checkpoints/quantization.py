"""Weights in 8 bits, as ComfyUI stores them: `<layer>.weight`, `<layer>.weight_scale`, the mark `<layer>.comfy_quant`.

Source: ComfyUI 0.30, comfy/ops.py (`mixed_precision_ops`) and the layouts of comfy_kitchen. Everything goes in chunks
of rows, so that a tensor of any size takes a few dozen megabytes beside itself.

The arithmetic is written out, because comfy_kitchen's quantizers are not equal in every case: `quantize_int8_rowwise`
stops at a scale of 1e-30 (rows of zeros, or below 1.3e-28), and `quantize_per_tensor_fp8` multiplies by the rounded
1 / scale, which moves a value in two million to its neighbor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .safetensors_writer import TensorSpec

PLAIN = torch.float16  # whatever is not quantized
CHUNK_ELEMENTS = 4 * 2**20
NOT_FINITE = "values that are infinite or not a number (NaN)"


class NotFiniteError(ValueError):
    """Weights that are NaN or infinite, or too large for float16."""


class TooLargeError(NotFiniteError):
    """Weights that are finite, but too large for the dtype."""


@dataclass(frozen=True)
class Quantization:
    """One of ComfyUI's 8-bit formats.

    `embeddings`: whether the embedding table is worth it. 4 random layers of full width lie 0.056 from their source
    with a float16 table and 0.070 with int8, which saves 0.2 of 6.9 GB; fp8 goes from 0.168 to 0.203.
    """

    algorithm: str  # a key of comfy.quant_ops.QUANT_ALGOS
    dtype: torch.dtype
    max_value: float  # what the largest weight of a row (or of the tensor) becomes
    per_row: bool
    embeddings: bool

    def applies_to(self, name: str) -> bool:
        """Return whether this tensor of the LLaMA is quantized."""
        return name.endswith("_proj.weight") or self.embeddings and name == "model.embed_tokens.weight"

    def mark(self) -> torch.Tensor:
        """Return the mark by which ComfyUI knows the format: JSON in a uint8 tensor."""
        return torch.frombuffer(bytearray(json.dumps({"format": self.algorithm}).encode()), dtype=torch.uint8)


INT8 = Quantization("int8_tensorwise", torch.int8, 127.0, per_row=True, embeddings=True)
FP8 = Quantization("float8_e4m3fn", torch.float8_e4m3fn, 448.0, per_row=False, embeddings=False)
FORMATS: dict[str, Quantization | None] = {"int8": INT8, "fp8": FP8, "fp16": None}


def tensor_layout(name: str, shape: tuple[int, ...], quantization: Quantization | None) -> dict[str, TensorSpec]:
    """Return the tensors that the weight `name` of this shape becomes in the file; without a quantization, float16."""
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
    """Yield the tensors of `tensor_layout` in chunks: (name, rows, index of the first row). Raises NotFiniteError."""
    if quantization is None:
        yield from cast_chunks(name, tensor, PLAIN)
        return
    layer = name.removesuffix(".weight")
    yield f"{layer}.comfy_quant", quantization.mark(), 0
    scale = torch.ones(())
    if not quantization.per_row:
        scale = _scale(name, _max_abs(tensor), quantization)
        yield f"{layer}.weight_scale", scale, 0
    for chunk, first_row in _row_chunks(tensor):
        rows = chunk.float()
        if quantization.per_row:
            scale = _scale(name, rows.abs().amax(dim=1, keepdim=True), quantization)
            yield f"{layer}.weight_scale", scale, first_row
        scaled = (rows / scale).clamp_(-quantization.max_value, quantization.max_value)
        rounded = scaled if quantization.dtype.is_floating_point else scaled.round_()
        yield name, rounded.to(quantization.dtype), first_row


def cast_chunks(
    name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Yield a tensor in `dtype`, its own by default, in chunks like `quantize_chunks`. Raises NotFiniteError."""
    for rows, first_row in _row_chunks(tensor):
        cast = rows.to(dtype or tensor.dtype)
        if not torch.isfinite(cast).all():
            if not torch.isfinite(rows).all():
                raise NotFiniteError(f"{name} holds {NOT_FINITE}")
            raise TooLargeError(f"{name} holds values up to {rows.abs().max().item():.3g}, too large for {dtype}")
        yield name, cast, first_row


def _row_chunks(tensor: torch.Tensor) -> Iterator[tuple[torch.Tensor, int]]:
    if tensor.ndim == 0:
        yield tensor, 0
        return
    count = max(1, CHUNK_ELEMENTS * len(tensor) // max(1, tensor.numel()))
    for first_row in range(0, len(tensor), count):
        yield tensor[first_row : first_row + count], first_row


def plain_dtype(name: str, tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype for a tensor that is not quantized: float16, or bfloat16 where a value is too large for it.

    One on "meta", whose values are not known yet, is taken to fit. Raises NotFiniteError.
    """
    if tensor.dtype == PLAIN or tensor.is_meta:
        return PLAIN
    return PLAIN if _finite(name, _max_abs(tensor)) <= torch.finfo(PLAIN).max else torch.bfloat16


def _max_abs(tensor: torch.Tensor) -> torch.Tensor:
    """Return the largest absolute value; NaN where there is one."""
    return torch.stack([rows.float().abs().amax() for rows, _ in _row_chunks(tensor)]).amax()


def _scale(name: str, max_abs: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    return torch.where(_finite(name, max_abs) > 0, max_abs / quantization.max_value, 1.0)


def _finite(name: str, max_abs: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(max_abs).all():
        raise NotFiniteError(f"{name} holds {NOT_FINITE}")
    return max_abs
