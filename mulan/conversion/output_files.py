"""What every converter shares: how it is described, the files it plans, and writing all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import VERSION
from ..boundary.values import format_size
from ..checkpoints.quantization import FORMATS, Quantization, cast_chunks, plain_dtype, quantize_chunks, tensor_layout
from ..checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec, check_disk_space
from ..checkpoints.tensor_files import TensorFile, WrongFileError, describe_path
from ..checkpoints.weight_source import MARK
from ..conditioning.model_files import TextEncoderFile

Precision = Quantization | torch.dtype  # what a tensor is stored in
OWN_DTYPES = "own dtypes"  # in place of a key of `FORMATS`


class CannotWriteError(ValueError):
    """The target, or the format for it, is not one that can be written."""


@dataclass(frozen=True)
class Progress:
    """What is written so far, and what there is to write."""

    tensors: int
    all_tensors: int
    bytes: int
    all_bytes: int

    def __str__(self) -> str:
        size = f"{format_size(self.bytes)} of {format_size(self.all_bytes)}"
        return f"{self.tensors} of {self.all_tensors} tensors, {size}"


@dataclass(frozen=True)
class ConversionResult:
    """A file that was written; a text encoder comes with its `source`, for `encoder_error`."""

    path: Path
    title: str
    size: int
    folder: str  # below ComfyUI's models
    source: TextEncoderFile | None = None
    beside: tuple[ConversionResult, ...] = ()  # further files that were made of the same source
    notes: tuple[str, ...] = ()  # what a person should know, such as what was left out

    def lines(self) -> list[str]:
        """Return what to tell a person: each file with its title and size, then the notes."""
        files = [f"{file.path}: {file.title}, {format_size(file.size)}" for file in (self, *self.beside)]
        return [*files, *self.notes]


@dataclass(frozen=True)
class Copy:
    """A tensor to write: `stored` of the source as `name`, in `precision`."""

    name: str
    stored: str
    precision: Precision
    names: tuple[str, ...]  # of all that is written of it

    def chunks(self, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, int]]:
        """Yield what is written of `stored`: (name, rows, index of the first row). Raises NotFiniteError."""
        if isinstance(self.precision, torch.dtype):
            return cast_chunks(self.name, tensor, self.precision)
        return quantize_chunks(self.name, tensor, self.precision)


@dataclass(frozen=True)
class Output:
    """A file to write: the `extra` tensors as they are, and `copies` of what `read` returns; `layout` has them all."""

    path: Path
    title: str
    folder: str  # below ComfyUI's models
    layout: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    extra: Mapping[str, torch.Tensor]
    copies: tuple[Copy, ...]
    read: Callable[[str], torch.Tensor]
    source: TextEncoderFile | None = None

    def tensors(self) -> Iterator[tuple[str, torch.Tensor, int]]:
        """Yield (name, rows, index of the first row) for every tensor of `layout`."""
        for name, tensor in self.extra.items():
            yield name, tensor, 0
        for copy in self.copies:
            yield from copy.chunks(self.read(copy.stored))


@dataclass(frozen=True)
class Plan:
    """The files to write, the main one first, and what to tell the user about them."""

    outputs: tuple[Output, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """Where the user wants the result of `source`: a file or a folder."""

    source: Path
    path: Path
    overwrite: bool

    def file(self, name: str) -> Path:
        """Return the target, or `name` in it where it is a folder. Raises CannotWriteError like `checked`."""
        return self.checked(self.path / name if self.path.is_dir() else self.path)

    def checked(self, path: Path) -> Path:
        """Return `path`. Raises CannotWriteError where it cannot be written."""
        if path.suffix.lower() != ".safetensors":
            raise CannotWriteError(f"the target is {path}: name a .safetensors file or an existing folder")
        if not path.parent.is_dir():
            raise CannotWriteError(f"the target's folder {path.parent} does not exist: create it, or name another")
        inside = self.source.resolve() in path.resolve().parents
        if inside or path.resolve() == self.source.resolve():
            raise CannotWriteError(
                f"the target {path} is {'in the source folder' if inside else 'the source itself'}: "
                f"name another, the source stays as it is"
            )
        if path.exists() and not self.overwrite:
            raise CannotWriteError(f"{path} already exists: delete it, name another target, or allow overwriting")
        return path


@dataclass(frozen=True)
class Converter:
    """One kind of source.

    `matches` tells by names and shapes whether a source is of this kind. `plan(source, target, weight_format)` checks
    all of it and returns the files to write; it raises WrongFileError, CannotWriteError or NotFiniteError.
    `weight_format` is a key of `FORMATS`, or `default_format` where the user names none.
    """

    matches: Callable[[TensorFile], bool]
    plan: Callable[[TensorFile, Target, str], Plan]
    default_format: str = "int8"


def place(plan: Plan, source: Path, folders: Callable[[str], Path], overwrite: bool) -> Plan:
    """Move each file of a plan to where `folders` says, by its folder below models/. Raises CannotWriteError."""
    outputs = tuple(replace(output, path=folders(output.folder) / output.path.name) for output in plan.outputs)
    for output in outputs:
        Target(source, output.path, overwrite).checked(output.path)
    return Plan(outputs, plan.notes)


def write(plan: Plan, progress: Callable[[Progress], None]) -> ConversionResult:
    """Write all files of a plan or none; return the first, the others `beside` it.

    Raise OSError where the disk has no room, before anything is written.
    """
    outputs = plan.outputs
    writers = [SafetensorsWriter(output.path, output.layout, output.metadata) for output in outputs]
    tensors, size = sum(len(output.layout) for output in outputs), sum(writer.size for writer in writers)
    with ExitStack() as files:  # whatever ends the writing early removes all
        for writer in writers:
            files.enter_context(writer)
        check_disk_space(outputs[0].path.parent, " with ".join(output.path.name for output in outputs), size)
        for writer, output in zip(writers, outputs, strict=True):
            for name, rows, first_row in output.tensors():
                writer.write(name, rows, first_row)
                complete, written = sum(each.complete for each in writers), sum(each.written for each in writers)
                progress(Progress(complete, tensors, written, size))
    main, *beside = (
        ConversionResult(output.path, output.title, writer.size, output.folder, output.source)
        for writer, output in zip(writers, outputs, strict=True)
    )
    return ConversionResult(main.path, main.title, main.size, main.folder, main.source, tuple(beside), plan.notes)


def plan_output(
    path: Path,
    title: str,
    folder: str,
    metadata: Mapping[str, str],
    source: TensorFile,
    names: Mapping[str, str],
    precisions: Mapping[str, Precision],
    extra: Mapping[str, torch.Tensor] | None = None,
    text_encoder: TextEncoderFile | None = None,
) -> Output:
    """Plan a file: copy `names` (target -> source) in the `precisions` of their source names, plus the `extra` tensors.

    A `text_encoder` goes along as what `encoder_error` compares with.
    """
    extra = extra or {}
    layout = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in extra.items()}
    copies = []
    for name, stored in names.items():
        precision, shape = precisions[stored], source.shapes[stored]
        if isinstance(precision, torch.dtype):
            specs = {name: TensorSpec(precision, shape)}
        else:
            specs = tensor_layout(name, shape, precision)
        layout |= specs
        copies.append(Copy(name, stored, precision, tuple(specs)))
    return Output(path, title, folder, layout, metadata, extra, tuple(copies), source.read, text_encoder)


def plan_precisions(
    source: TensorFile,
    names: Iterable[str],
    quantized: set[str],
    quantization: Quantization | None,
    plain: Callable[[str, torch.Tensor], torch.dtype] = plain_dtype,
) -> dict[str, Precision]:
    """Return what each tensor of `names` is stored in: `quantization` for those `quantized`, else the dtype of `plain`.

    The latter are read for it, before anything is written. Raise NotFiniteError.
    """
    if quantization is None:
        quantized = set()
    return {
        name: quantization if quantization and name in quantized else plain(name, source.read(name)) for name in names
    }


def refuse_quantized(path: Path, names: Iterable[str], published_at: str) -> None:
    """Raise WrongFileError where one of the names marks quantized weights: rounding twice would only add errors."""
    mark = next((name for name in names if name.endswith((f".{MARK}", "scaled_fp8"))), None)
    if mark is not None:
        raise WrongFileError(
            f"{describe_path(path)} already holds quantized weights ({mark}): convert the published checkpoint, "
            f"from {published_at}."
        )


def as_bytes(content: bytes) -> torch.Tensor:
    """Return a file's content as a uint8 tensor."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def stem(path: Path) -> str:
    """Return what a converted file's name begins with."""
    return path.resolve().name if path.is_dir() else path.stem


def make_metadata(
    title: str, path: Path, published_at: str, *, license: str, weight_format: str | None = None, **more: str
) -> dict[str, str]:
    """Return the metadata of a converted file: where it comes from, `more`, its quantization and its license."""
    quantized = {}
    if weight_format is not None:
        quantization = FORMATS[weight_format]
        quantized = {"quantization": quantization.algorithm if quantization else "none"}
    return {
        "format": "pt",
        "title": title,
        "made_by": f"MuLan Nodes {VERSION}, mulan.conversion",
        "source": f"{path.resolve().name}, from {published_at}",
        **more,
        **quantized,
        "license": license,
    }
