"""ComfyUI's 4-bit format nvfp4: numbers in E2M1, blocks of them with a scale each, and the order of the scales.

Source: comfy_kitchen's `TensorCoreNVFP4Layout`. A weight [rows, columns] is uint8 [rows, columns / 2]. Each 16 of a
row's weights have a scale in float8 E4M3; those scales lie as cuBLAS reads them, in tiles of 128 x 4. A float32 scales
the whole tensor. Sides that are no multiples of 16 are padded with zeros.
"""

from __future__ import annotations

import math

import torch

BLOCK = 16
TILE_ROWS, TILE_COLUMNS = 128, 4
LARGEST, LARGEST_SCALE = 6.0, 448.0  # of E2M1 and of E4M3


def packed_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of the bytes of a weight of this shape."""
    return _whole(shape[0], BLOCK), _whole(shape[1], BLOCK) // 2


def scales_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of the blocks' scales of a weight of this shape, whole tiles."""
    return _whole(shape[0], TILE_ROWS), _whole(_whole(shape[1], BLOCK) // BLOCK, TILE_COLUMNS)


def round_blocks(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return blocks [rows, blocks, 16] divided by their scales [rows, blocks], rounded to E2M1 (halves to even)."""
    scaled = (blocks / scales.where(scales > 0, math.inf)[..., None]).clamp_(-LARGEST, LARGEST)
    size = scaled.abs()
    step = (size >= 2).float().add_(size >= 4).exp2_().mul_(0.5)  # 0.5 below 2, 1 below 4, 2 above
    return scaled.div_(step).round_().mul_(step)


def pack(blocks: torch.Tensor) -> torch.Tensor:
    """Return numbers of E2M1 [rows, blocks, 16] as bytes [rows, columns / 2], the even column in the upper half."""
    size = blocks.abs()
    code = torch.where(size <= 2, size * 2, torch.where(size <= 4, size + 2, size / 2 + 4)).to(torch.uint8)
    code |= torch.signbit(blocks).to(torch.uint8) << 3
    even, odd = code.flatten(1).unflatten(1, (-1, 2)).unbind(2)
    return even << 4 | odd


def tiled(scales: torch.Tensor) -> torch.Tensor:
    """Return the blocks' scales [rows, blocks], one byte each, in tiles and padded with zeros to whole ones.

    In a tile of 128 x 4 the rows i, i + 32, i + 64 and i + 96 lie beside each other.
    """
    rows, columns = _whole(len(scales), TILE_ROWS), _whole(scales.shape[1], TILE_COLUMNS)
    padded = scales.new_zeros(rows, columns)
    padded[: len(scales), : scales.shape[1]] = scales
    tiles = padded.view(rows // TILE_ROWS, 4, 32, columns // TILE_COLUMNS, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(rows, columns)


def untiled(scales: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the scales [rows, blocks] of a weight of this shape from `tiled` ones."""
    rows, columns = scales.shape
    tiles = scales.reshape(rows // TILE_ROWS, columns // TILE_COLUMNS, 32, 4, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(rows, columns)[: shape[0], : shape[1] // BLOCK]


def _whole(length: int, unit: int) -> int:
    return length + -length % unit
