"""A checkpoint of InternVL-C / -G -> its parts, their sizes, and where each of their tensors comes from.

Published folders, internvl_c_13b_224px.pth (mode C only) and what the converter makes of either are read alike: names
and shapes first, a tensor only where a part is filled. A converted file holds all but the LLaMA, under the published
names, with config.json in its metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from ..checkpoints.config import read_config
from ..checkpoints.identify import identify
from ..checkpoints.tensor_files import TensorFile, WrongFileError, describe_path, open_tensors
from ..checkpoints.weight_check import check_weights, reading_sizes
from ..checkpoints.weight_source import WeightSource, has_quantized, with_scales
from ..conditioning.model_files import ENCODER_SOURCE as SOURCE
from ..conditioning.model_files import TextEncoderFile, text_encoder_from_tensors
from . import internvl_c, internvl_keys
from .contrastive import ContrastiveConfig, ContrastiveModel, QueryReader, ReaderConfig

MODES = ("C", "G")

Module = TypeVar("Module", bound=nn.Module)
Config = TypeVar("Config")


@dataclass(frozen=True)
class Part(Generic[Module, Config]):
    """A part of a checkpoint: its class, its sizes, and the published tensors of each of its own."""

    module: Callable[..., Module]
    config: Config
    sources: Mapping[str, WeightSource]

    def build(self, *, operations: Any, dtype=None, device=None) -> Module:
        """Return the part without values."""
        return self.module(self.config, operations=operations, dtype=dtype, device=device)


@dataclass(frozen=True)
class ContrastiveFile:
    """A checkpoint, opened; none of its weights is read yet.

    `file` has the published names, whatever the file's own are.
    """

    file: TensorFile
    config_json: Mapping[str, Any]
    model: Part[ContrastiveModel, ContrastiveConfig]
    reader: Part[QueryReader, ReaderConfig] | None  # what mode G adds, where the file has it
    open_text: Callable[[], TextEncoderFile] | None  # of the LLaMA, where the file has it

    @property
    def modes(self) -> tuple[str, ...]:
        return MODES if self.reader else MODES[:1]

    @property
    def is_quantized(self) -> bool:
        return has_quantized(self.file.shapes)

    def parts(self, mode: str) -> tuple[Part[Any, Any], ...]:
        """Return the parts of a mode, the model first.

        Raises ValueError for an unknown mode, WrongFileError for one that the file lacks.
        """
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}: expected one of {', '.join(MODES)}")
        if mode == "C":
            return (self.model,)
        if self.reader is None:
            raise WrongFileError(
                f"{describe_path(self.file.path)} holds only InternVL-C, without the {internvl_keys.QUERIES} and cross "
                "attention of "
                f"InternVL-G: choose mode C, or the checkpoint {SOURCE}."
            )
        return (self.model, self.reader)

    def sources(self, part: Part) -> dict[str, WeightSource]:
        """Return the published tensors of each of the part's own, with the scales of quantized weights."""
        return with_scales(part.sources, self.file.shapes)

    def tensors(self, part: Part) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the part's own names and values, read one after another, with the scales of quantized weights."""
        for name, source in self.sources(part).items():
            yield name, source.read(self.file.read)

    def text_encoder(self) -> TextEncoderFile:
        """Return the LLaMA inside the checkpoint. Raises WrongFileError where it has none, or none that can be used."""
        if self.open_text is None:
            raise WrongFileError(
                f"{describe_path(self.file.path)} holds only InternVL's vision side: choose its text encoder too, the "
                "file in "
                f"models/text_encoders that was converted with it."
            )
        return self.open_text()


def open_internvl(path: Path) -> ContrastiveFile:
    """Open a published folder, the single .pth or a converted file.

    Raises WrongFileError for anything else, and for a checkpoint that lacks a tensor or has one of another shape.
    """
    return internvl_from_tensors(open_tensors(Path(path)))


def internvl_from_tensors(file: TensorFile) -> ContrastiveFile:
    """Do what `open_internvl` does, with tensors that are open already."""
    published = internvl_c.vision_as_published(file) if internvl_c.is_internvl_c(file.shapes) else file
    shapes = published.shapes
    if f"{internvl_keys.VISION}embeddings.class_embedding" not in shapes or "text_projection" not in shapes:
        raise WrongFileError(
            f"{describe_path(file.path)} is {identify(file.shapes)}; expected InternVL-C or -G, from {SOURCE}, in "
            "models/internvl."
        )
    config = read_config(published)
    with reading_sizes(file.path):
        model_config = internvl_keys.model_configuration(shapes, config)
        model = Part(ContrastiveModel, model_config, internvl_keys.model_sources(model_config))
        reader = None
        if internvl_keys.QUERIES in shapes:
            reader_config = internvl_keys.reader_configuration(shapes, config)
            reader = Part(QueryReader, reader_config, internvl_keys.reader_sources(reader_config))
    opened = ContrastiveFile(published, config.entries, model, reader, _text_opener(file))
    _check(opened)
    return opened


def unexpected(opened: ContrastiveFile) -> list[str]:
    """Return the names of tensors that nothing here knows; those of the LLaMA are the text encoder's to judge."""
    used = {
        name
        for part in opened.parts(opened.modes[-1])
        for source in opened.sources(part).values()
        for name in source.names
    }
    return [name for name in opened.file.shapes if name not in used and not internvl_keys.unused(name)]


def _text_opener(file: TensorFile) -> Callable[[], TextEncoderFile] | None:
    if internvl_c.is_internvl_c(file.shapes):
        return lambda: text_encoder_from_tensors(internvl_c.as_published(file))
    if any(name.startswith(f"{internvl_keys.LLAMA}model.embed_tokens.") for name in file.shapes):
        return lambda: text_encoder_from_tensors(file)
    return None


def _check(opened: ContrastiveFile) -> None:
    """Raise WrongFileError where a tensor is missing, holds no weights, or has another shape than the model's."""
    for part in opened.parts(opened.modes[-1]):
        state_dict = part.build(operations=nn, device="meta").state_dict()
        check_weights(
            opened.file, opened.sources(part), {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
        )
