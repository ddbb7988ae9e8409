"""What every converter shares: the files it writes, all of them or none, and what it tells of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from .. import VERSION
from ..checkpoints.quantization import Quantization, cast_chunks, plain_dtype, quantize_chunks, tensor_layout
from ..checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec, check_disk_space
from ..checkpoints.tensor_files import TensorFile
from ..conditioning.model_files import TextEncoderFile

DEFAULT_FORMAT = "int8"
Form = Quantization | torch.dtype  # what a tensor becomes
Opened = TypeVar("Opened")
PORTION = 2**28  # weights read between two openings of the source: closing it gives the pages of the mapped file back


class CannotWriteError(ValueError):
    """The target, or the format for it, is not one that can be written."""


@dataclass(frozen=True)
class Progress:
    """What is written so far, and what there is to write."""

    tensors: int
    all_tensors: int
    bytes: int
    all_bytes: int


@dataclass(frozen=True)
class ConversionResult:
    """The file written and what it is; a text encoder's `source` opens what it was made of, for `encoder_error`."""

    path: Path
    title: str
    size: int
    folder: str  # below ComfyUI's models
    source: Callable[[], TextEncoderFile] | None = None
    beside: tuple[ConversionResult, ...] = ()  # further files that were made of the same source
    notes: tuple[str, ...] = ()  # what a person should know, such as what was left out


@dataclass(frozen=True)
class Output:
    """A file to write: `tensors` gives (name, rows, number of the first row) for all of `tensor_layout`."""

    path: Path
    title: str
    folder: str  # below ComfyUI's models
    tensor_layout: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    tensors: Callable[[], Iterator[tuple[str, torch.Tensor, int]]]
    source: Callable[[], TextEncoderFile] | None = None


def write(outputs: list[Output], progress: Callable[[Progress], None], notes: tuple[str, ...] = ()) -> ConversionResult:
    """Writes all of them or none; the others are told `beside` the first. Raises OSError where the disk has no room."""
    streams = [SafetensorsWriter(output.path, output.tensor_layout, output.metadata) for output in outputs]
    tensors, size = sum(len(output.tensor_layout) for output in outputs), sum(stream.size for stream in streams)
    with ExitStack() as files:  # whatever ends the writing early removes all
        for stream in streams:
            files.enter_context(stream)
        check_disk_space(outputs[0].path.parent, " with ".join(output.path.name for output in outputs), size)
        for stream, output in zip(streams, outputs):
            for name, rows, first in output.tensors():
                stream.write(name, rows, first)
                progress(
                    Progress(
                        sum(each.complete for each in streams), tensors, sum(each.written for each in streams), size
                    )
                )
    made, *beside = (
        ConversionResult(output.path, output.title, stream.size, output.folder, output.source)
        for stream, output in zip(streams, outputs)
    )
    return replace(made, beside=tuple(beside), notes=notes)


def plan_output(
    path: Path,
    title: str,
    folder: str,
    metadata: Mapping[str, str],
    open_source: Callable[[], TensorFile],
    names: Mapping[str, str],
    forms: Mapping[str, Form],
    more: Mapping[str, torch.Tensor] = {},
) -> Output:
    """A file of `names` (in it -> in the source), each of the source's in its form, and of tensors that the source does not hold."""
    shapes = open_source().shapes
    layout = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in more.items()}
    for name, stored in names.items():
        form, shape = forms[stored], shapes[stored]
        layout |= {name: TensorSpec(form, shape)} if isinstance(form, torch.dtype) else tensor_layout(name, shape, form)

    def tensors():
        for name, tensor in more.items():
            yield name, tensor, 0
        for name, source in opened_again(
            open_source, {name: math.prod(shapes[stored]) for name, stored in names.items()}
        ):
            value, form = source.read(names[name]), forms[names[name]]
            yield from (
                cast_chunks(name, value, form) if isinstance(form, torch.dtype) else quantize_chunks(name, value, form)
            )

    return Output(path, title, folder, layout, metadata, tensors)


def plain_forms(
    open_source: Callable[[], TensorFile],
    names: Iterable[str],
    form: Callable[[str, torch.Tensor], torch.dtype] = plain_dtype,
) -> dict[str, torch.dtype]:
    """The dtype of each tensor that is not quantised. Their values are read for it, before anything is written. Raises NotFinite."""
    shapes = open_source().shapes
    sizes = {name: math.prod(shapes[name]) for name in names}
    return {name: form(name, source.read(name)) for name, source in opened_again(open_source, sizes)}


def opened_again(open_source: Callable[[], Opened], sizes: Mapping[str, int]) -> Iterator[tuple[str, Opened]]:
    """Each name, given with its number of weights, and the source to read it from, which is opened anew now and then."""
    for names in portions(sizes):
        source = open_source()
        yield from ((name, source) for name in names)


def portions(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Tensors' names, given with their numbers of weights, in runs of about `PORTION` weights."""
    names, weights = [], 0
    for name, size in sizes.items():
        names.append(name)
        weights += size
        if weights > PORTION:
            yield names
            names, weights = [], 0
    yield names


def target_path(source: Path, target: Path, name: str, overwrite: bool) -> Path:
    """The file to write: `target`, or `name` in it where it is a folder. Raises CannotWrite for one that will not do."""
    path = target / name if target.is_dir() else target
    if path.suffix.lower() != ".safetensors":
        raise CannotWriteError(f"the target is {path}: name a .safetensors file, or a folder that exists")
    if not path.parent.is_dir():
        raise CannotWriteError(f"the target's folder {path.parent} does not exist: make it, or name another")
    inside = source.resolve() in path.resolve().parents
    if path.resolve() == source.resolve() or inside:
        raise CannotWriteError(
            f"the target {path} is {'in the source folder' if inside else 'the source itself'}: name another, the source stays as it is"
        )
    if path.exists() and not overwrite:
        raise CannotWriteError(f"{path} exists: delete it, name another target, or say that it may be overwritten")
    return path


def stem(path: Path) -> str:
    """What a converted file's name begins with."""
    return path.resolve().name if path.is_dir() else path.stem


def source_notes(title: str, path: Path, source: str) -> dict[str, str]:
    """The metadata that every converted file has."""
    return {
        "format": "pt",
        "title": title,
        "made_by": f"MuLan Nodes {VERSION}, python dev.py convert",
        "source": f"{path.resolve().name}, from {source}",
    }
