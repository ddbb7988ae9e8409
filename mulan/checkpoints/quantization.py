"""Weights in 8 and 4 bits, as ComfyUI stores them: `<layer>.weight`, its scales, the mark `<layer>.comfy_quant`.

Source: ComfyUI 0.30, comfy/ops.py (`mixed_precision_ops`) and the layouts of comfy_kitchen. Everything goes in chunks
of rows, so that a tensor of any size takes a few dozen megabytes beside itself.

The arithmetic is written out, because comfy_kitchen's quantizers are not equal in every case: `quantize_int8_rowwise`
stops at a scale of 1e-30 (rows of zeros, or below 1.3e-28), and `quantize_per_tensor_fp8` multiplies by the rounded
1 / scale, which moves a value in two million to its neighbor. In 4 bits it rounds better than `quantize_nvfp4` does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import nvfp4
from .rotation import rotation
from .safetensors_writer import TensorSpec

PLAIN = torch.float16  # whatever is not quantized
CHUNK_ELEMENTS = 4 * 2**20
ROTATED = "down_proj.weight", "model.embed_tokens.weight"
ROTATED_COLUMNS = 256  # a group's; a power of 4
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

    def fitting(self, name: str, shape: tuple[int, ...]) -> Quantization:
        """Return the quantization for the weight `name` of this shape: this one, or one that can hold it."""
        return self

    def mark(self) -> torch.Tensor:
        """Return the mark by which ComfyUI knows the format: JSON in a uint8 tensor."""
        return torch.frombuffer(bytearray(json.dumps({"format": self.algorithm}).encode()), dtype=torch.uint8)

    def layout(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        """Return what a weight of this shape becomes, by the end of its name behind the layer's."""
        return {
            "weight": TensorSpec(self.dtype, shape),
            "weight_scale": TensorSpec(torch.float32, (shape[0], 1) if self.per_row else ()),
            "comfy_quant": TensorSpec(torch.uint8, tuple(self.mark().shape)),
        }

    def chunks(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, int]]:
        """Yield the tensors of `layout` but for the mark: (end of the name, rows, index of the first row)."""
        scale = torch.ones(())
        if not self.per_row:
            scale = self._scale(name, _max_abs(tensor))
            yield "weight_scale", scale, 0
        for chunk, first_row in _row_chunks(tensor):
            rows = self._prepared(chunk.float())
            if self.per_row:
                scale = self._scale(name, rows.abs().amax(dim=1, keepdim=True))
                yield "weight_scale", scale, first_row
            scaled = (rows / scale).clamp_(-self.max_value, self.max_value)
            rounded = scaled if self.dtype.is_floating_point else scaled.round_()
            yield "weight", rounded.to(self.dtype), first_row

    def _prepared(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def _scale(self, name: str, max_abs: torch.Tensor) -> torch.Tensor:
        return torch.where(_finite(name, max_abs) > 0, max_abs / self.max_value, 1.0)


class Int8(Quantization):
    """int8 with a scale per row. Rotated are, where their width allows, the layer that ends a feed-forward part, whose
    inputs have long tails, and the embedding table, whose rows may have a few values far above the others.
    """

    def fitting(self, name: str, shape: tuple[int, ...]) -> Quantization:
        """Return the rotated form for those that need it."""
        return ROTATED_INT8 if name.endswith(ROTATED) and shape[1] % ROTATED_COLUMNS == 0 else self


class RotatedInt8(Quantization):
    """ComfyUI's `convrot`: int8 whose columns are rotated in groups, and whose input is rotated when it is used.

    What a feed-forward part gives its last layer has long tails, which 8 bits round coarsely: of normal rows times a
    gate, the product is off by 0.028, rotated by 0.009. The weights themselves lose as much as before.
    """

    def mark(self) -> torch.Tensor:
        """Return the mark by which ComfyUI knows the format: JSON in a uint8 tensor."""
        content = {"format": self.algorithm, "convrot": True, "convrot_groupsize": ROTATED_COLUMNS}
        return torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)

    def _prepared(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows.unflatten(1, (-1, ROTATED_COLUMNS)) @ rotation(ROTATED_COLUMNS)).flatten(1)


class Nvfp4(Quantization):
    """ComfyUI's nvfp4: 4 bits a weight, and 8 for the scale of each 16 weights of a row; see nvfp4.py.

    A power of two scales the whole tensor, so that the same is read back in every dtype. Of a block's scales the one of
    the least squared error is taken: normal values come back with a relative error of 0.083, not 0.095. ComfyUI reads
    no embedding table in blocks: that stays in int8, as weights do whose sides are no multiples of 16.
    """

    # Steps of E4M3 from the scale that makes a block's largest weight 6: those near it, and those that make it 4
    SCALES = (0, -1, 4, 5)

    def fitting(self, name: str, shape: tuple[int, ...]) -> Quantization:
        """Return int8 for what cannot be in blocks."""
        is_table = name.endswith(("embed_tokens.weight", "tok_embeddings.weight"))
        return INT8.fitting(name, shape) if is_table or any(side % nvfp4.BLOCK for side in shape) else self

    def layout(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        """Return what a weight of this shape becomes, by the end of its name behind the layer's."""
        return {
            "weight": TensorSpec(self.dtype, nvfp4.packed_shape(shape)),
            "weight_scale": TensorSpec(torch.float8_e4m3fn, nvfp4.scales_shape(shape)),
            "weight_scale_2": TensorSpec(torch.float32, ()),
            "comfy_quant": TensorSpec(torch.uint8, tuple(self.mark().shape)),
        }

    def chunks(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, int]]:
        """Yield the tensors of `layout` but for the mark: (end of the name, rows, index of the first row)."""
        least = _finite(name, _max_abs(tensor)).item() / self.max_value
        tensor_scale = 2.0 ** math.ceil(math.log2(least)) if least else 1.0
        yield "weight_scale_2", torch.tensor(tensor_scale), 0
        for chunk, first_row in _row_chunks(tensor, nvfp4.TILE_ROWS):
            blocks = (chunk.float() / tensor_scale).unflatten(1, (-1, nvfp4.BLOCK))
            scales = self._scales(blocks)
            yield "weight_scale", nvfp4.tiled(scales).view(torch.float8_e4m3fn), first_row
            yield "weight", nvfp4.pack(nvfp4.round_blocks(blocks, _e4m3(scales))), first_row

    def _scales(self, blocks: torch.Tensor) -> torch.Tensor:
        """Return the scale of each block [rows, blocks, 16]: uint8 [rows, blocks], the bytes of E4M3."""
        largest = torch.tensor(nvfp4.LARGEST_SCALE).to(torch.float8_e4m3fn).view(torch.uint8).item()
        usual = (blocks.abs().amax(dim=2) / nvfp4.LARGEST).to(torch.float8_e4m3fn).view(torch.uint8).int()
        best, least = usual, torch.full(usual.shape, math.inf)
        for steps in self.SCALES:
            scales = (usual + steps).clamp_(0, largest)
            scale = _e4m3(scales.to(torch.uint8))
            error = (nvfp4.round_blocks(blocks, scale) * scale[..., None]).sub_(blocks).square_().sum(dim=2)
            best = torch.where(error < least, scales, best)
            least = torch.minimum(error, least)
        return best.to(torch.uint8)


INT8 = Int8("int8_tensorwise", torch.int8, 127.0, per_row=True, embeddings=True)
ROTATED_INT8 = RotatedInt8("int8_tensorwise", torch.int8, 127.0, per_row=True, embeddings=True)
FP8 = Quantization("float8_e4m3fn", torch.float8_e4m3fn, 448.0, per_row=False, embeddings=False)
INT4 = Nvfp4("nvfp4", torch.uint8, nvfp4.LARGEST * nvfp4.LARGEST_SCALE, per_row=False, embeddings=True)
FORMATS: dict[str, Quantization | None] = {"int8": INT8, "int4": INT4, "fp8": FP8, "fp16": None}


def tensor_layout(name: str, shape: tuple[int, ...], quantization: Quantization | None) -> dict[str, TensorSpec]:
    """Return the tensors that the weight `name` of this shape becomes in the file; without a quantization, float16."""
    if quantization is None:
        return {name: TensorSpec(PLAIN, shape)}
    layer = name.removesuffix("weight")
    return {f"{layer}{end}": spec for end, spec in quantization.fitting(name, shape).layout(shape).items()}


def quantize_chunks(
    name: str, tensor: torch.Tensor, quantization: Quantization | None
) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Yield the tensors of `tensor_layout` in chunks: (name, rows, index of the first row). Raises NotFiniteError."""
    if quantization is None:
        yield from cast_chunks(name, tensor, PLAIN)
        return
    layer, fitting = name.removesuffix("weight"), quantization.fitting(name, tuple(tensor.shape))
    yield f"{layer}comfy_quant", fitting.mark(), 0
    for end, rows, first_row in fitting.chunks(name, tensor):
        yield f"{layer}{end}", rows, first_row


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


def _row_chunks(tensor: torch.Tensor, together: int = 1) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield runs of rows with the index of the first; all but the last have a multiple of `together` rows."""
    if tensor.ndim == 0:
        yield tensor, 0
        return
    count = max(1, CHUNK_ELEMENTS * len(tensor) // max(1, tensor.numel()))
    count = max(1, count // together) * together
    for first_row in range(0, len(tensor), count):
        yield tensor[first_row : first_row + count], first_row


def _e4m3(bytes: torch.Tensor) -> torch.Tensor:
    return bytes.view(torch.float8_e4m3fn).float()


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


def _finite(name: str, max_abs: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(max_abs).all():
        raise NotFiniteError(f"{name} holds {NOT_FINITE}")
    return max_abs
