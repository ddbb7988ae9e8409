"""What a file's header tells of its tensors, checked before any is read: names, numbers of layers, shapes, dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..boundary.files import parse_json
from .nvfp4 import packed_shape, scales_shape
from .tensor_files import TensorFile, WrongFileError, describe_path
from .weight_source import MARK, SCALE, TENSOR_SCALE, WeightSource

Shape = tuple[int, ...]

INT8, NVFP4 = "int8_tensorwise", "nvfp4"
# ComfyUI's format of a quantized layer -> the dtype that its weight is stored in
STORED_IN = {INT8: "int8", "float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2", NVFP4: "uint8"}
ROTATED_COLUMNS = 256  # in a group where an int8 layer's mark only says that its columns are rotated
ROTATIONS = [4**power for power in range(1, 9)]  # numbers of columns in a group
PACKED = ("mxfp8", "convrot_w4a4")  # formats of ComfyUI's whose weights have shapes of their own
FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def shape_of(shapes: Mapping[str, Shape], name: str, dimensions: int) -> Shape:
    """Return the shape of a tensor that has so many dimensions. Raises KeyError where it is missing, ValueError where
    it has other dimensions or none of its numbers.
    """
    shape = tuple(shapes[name])
    if len(shape) != dimensions or min(shape) < 1:
        raise ValueError(f"{name} has the shape {list(shape)}, expected {dimensions} dimensions")
    return shape


def count_layers(names: Iterable[str], prefix: str) -> int:
    """Return how many modules are numbered behind `prefix` ("encoder.layers."), from 0 without a gap; 0 for none.

    Raises ValueError where a name has no number there, or a number is left out.
    """
    indices = {name.removeprefix(prefix).split(".", 1)[0] for name in names if name.startswith(prefix)}
    expected = {str(index) for index in range(len(indices))}
    odd = sorted(indices - expected)
    if odd:
        lacking = min(expected - indices, key=int)
        raise ValueError(f"it has tensors of {prefix}{odd[0][:40]}, but none of {prefix}{lacking}")
    return len(indices)


@contextmanager
def reading_sizes(path: Path, advice: str = "Download it again", prefix: str = "") -> Iterator[None]:
    """Raise WrongFileError, which names the file, in place of what `shape_of` and `count_layers` raise.

    prefix: stands in the file before the names that were asked for. advice: what to do where sizes do not fit.
    """
    try:
        yield
    except KeyError as error:
        raise WrongFileError(
            f"{describe_path(path)} is incomplete: it has no tensor {prefix}{error.args[0]}. Download it again."
        ) from error
    except WrongFileError:
        raise
    except ValueError as error:
        raise WrongFileError(f"{describe_path(path)} cannot be used: {error}. {advice}.") from error


def check_weights(
    file: TensorFile, sources: Mapping[str, WeightSource], expected: Mapping[str, Shape], quantized_in: str | None = ""
) -> None:
    """Raise WrongFileError where a tensor that a model reads is missing, holds no weights, or has another shape.

    sources: those of each tensor of the model, and of its quantized layers' scales and marks. expected: the shape of
    each tensor of the model. quantized_in: the part of the model (the beginning of its names) that may have quantized
    layers, None where no part may. Of the values only the marks are read.
    """
    where = describe_path(file.path)
    missing = sorted({name for source in sources.values() for name in source.names} - file.shapes.keys())
    if missing:
        raise WrongFileError(
            f"{where} is incomplete: {len(missing)} tensors are missing, the first is {missing[0]}. Download it again."
        )
    for ours, shape in expected.items():
        if ours not in sources:
            raise WrongFileError(f"{where} is incomplete: nothing in it gives {ours}. Download it again.")
        _check_weight(file, ours, sources, shape, quantized_in)


def check_dtype(file: TensorFile, name: str, stored_in: str | None = None) -> None:
    """Raise WrongFileError where a tensor's dtype cannot hold weights. `stored_in`: that of its quantization."""
    dtype = file.dtypes.get(name)
    if dtype is None or dtype == stored_in or stored_in is None and dtype in FLOATS:
        return
    expected = stored_in or "floating-point numbers"
    raise WrongFileError(
        f"{describe_path(file.path)}: {name} holds {dtype}, expected {expected}: these are no weights that can be "
        f"loaded. Download it, or convert it, again."
    )


def layer_format(file: TensorFile, mark: str) -> str:
    """Return the quantization that a layer's mark names. Raises WrongFileError where it names none."""
    return _read_mark(file, mark)["format"]


def _read_mark(file: TensorFile, mark: str) -> dict[str, Any]:
    try:
        content: Any = parse_json(file.read_bytes(mark))
    except ValueError:
        content = None
    if isinstance(content, dict) and content.get("format") in (*STORED_IN, *PACKED):
        return content
    raise WrongFileError(
        f"{describe_path(file.path)}: {mark} names no quantization that is known here "
        f"({', '.join(STORED_IN)}). Convert it again."
    )


def _check_weight(
    file: TensorFile, ours: str, sources: Mapping[str, WeightSource], shape: Shape, quantized_in: str | None
) -> None:
    source, layer = sources[ours], ours.removesuffix("weight")
    stored_in = None
    if f"{layer}{MARK}" in sources:
        if quantized_in is None or not ours.startswith(quantized_in) or len(shape) != 2:
            raise WrongFileError(
                f"{describe_path(file.path)}: {source.names[0]} is marked as quantized, and such a tensor cannot be. "
                f"Convert it again."
            )
        mark = sources[f"{layer}{MARK}"].names[0]
        content = _read_mark(file, mark)
        quantization = content["format"]
        stored_in = STORED_IN.get(quantization, "another format")
        for scale, weight in zip(sources[f"{layer}{SCALE}"].names, source.names, strict=True):
            if quantization == NVFP4:
                _check_nvfp4_scales(file, scale, file.shapes[weight])
            else:
                _check_scale(file, scale, file.shapes[weight])
        if quantization == INT8:
            _check_rotation(file, mark, content, shape[1])
        shape = packed_shape(shape) if quantization == NVFP4 else shape
    for name in source.names:
        check_dtype(file, name, stored_in)
    try:
        given = tuple(source.read(lambda name: torch.empty(file.shapes[name], device="meta")).shape)
    except (RuntimeError, ValueError, IndexError):  # rows that cannot be put together, or divided among the heads
        given = None
    if given != shape:
        shapes = " and ".join(f"{name} {list(file.shapes[name])}" for name in source.names)
        raise WrongFileError(
            f"{describe_path(file.path)}: {shapes} cannot be {ours} {list(shape)}. "
            f"The file is damaged, or its config.json is another checkpoint's."
        )


def _check_rotation(file: TensorFile, mark: str, content: dict[str, Any], columns: int) -> None:
    settings = content.get("params")
    settings = {**settings, **content} if isinstance(settings, dict) else content  # ComfyUI reads both, content first
    group = settings.get("convrot_groupsize", ROTATED_COLUMNS)
    if settings.get("convrot") and (group not in ROTATIONS or columns % group):
        raise WrongFileError(
            f"{describe_path(file.path)}: {mark} rotates groups of {str(group)[:40]} columns, expected a power of 4 "
            f"that divides the {columns} columns of the weight. Convert it again."
        )


def _check_scale(file: TensorFile, name: str, weight: Shape) -> None:
    check_dtype(file, name)
    if file.shapes[name] not in ((), (weight[0] if weight else 1, 1)):
        raise WrongFileError(
            f"{describe_path(file.path)}: {name} has the shape {list(file.shapes[name])}, expected one scale, or one "
            f"for each row. Convert it again."
        )


def _check_nvfp4_scales(file: TensorFile, name: str, weight: Shape) -> None:
    check_dtype(file, name, "float8_e4m3fn")
    tensor_scale = f"{name.removesuffix(SCALE)}{TENSOR_SCALE}"
    if tensor_scale in file.shapes:
        check_dtype(file, tensor_scale)
    expected = {name: scales_shape((weight[0], 2 * weight[1])) if len(weight) == 2 else None, tensor_scale: ()}
    for scale, shape in expected.items():
        if file.shapes.get(scale) != shape:
            found = f"has the shape {list(file.shapes[scale])}" if scale in file.shapes else "is missing"
            raise WrongFileError(
                f"{describe_path(file.path)}: {scale} {found}, expected {list(shape or ())} in nvfp4. Convert it again."
            )
