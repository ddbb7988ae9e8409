"""A checkpoint of InternVL-C / -G -> its parts, their sizes, and where each of their tensors comes from.

Published folders, internvl_c_13b_224px.pth (mode C alone) and what `dev.py convert` makes of either are read alike: names and shapes first, a tensor
only where a part is filled. A converted file holds all but the LLaMA, under the published names, and the configuration in its metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.identify import identify
from ..checkpoints.tensor_files import TensorFile, WrongFileError, describe_path, open_tensors, read_config
from ..checkpoints.weight_source import MARK, WeightSource, with_scales
from ..conditioning.model_files import ENCODER_SOURCE as SOURCE
from ..conditioning.model_files import TextEncoderFile, text_encoder_of
from . import internvl_c
from . import internvl_keys as names
from .contrastive import ContrastiveConfig, ContrastiveModel, QueryReader, ReaderConfig

MODES = ("C", "G")


@dataclass(frozen=True)
class Part:
    """A part of a checkpoint: `sources` tells the published tensors of each of its own."""

    config: ContrastiveConfig | ReaderConfig
    sources: Mapping[str, WeightSource]

    def build(self, *, operations, dtype=None, device=None) -> nn.Module:
        """The part without values."""
        module = ContrastiveModel if isinstance(self.config, ContrastiveConfig) else QueryReader
        return module(self.config, operations=operations, dtype=dtype, device=device)


@dataclass(frozen=True)
class ContrastiveFile:
    """A checkpoint, opened; nothing of its weights is read yet. `file` has the published names, whatever the file's own are."""

    file: TensorFile
    told: Mapping[str, Any]  # config.json
    model: Part
    reader: Part | None  # what mode G adds, where the file has it
    open_text: Callable[[], TextEncoderFile] | None  # of the LLaMA, where the file has it

    @property
    def modes(self) -> tuple[str, ...]:
        return MODES if self.reader else MODES[:1]

    @property
    def is_quantised(self) -> bool:
        return any(name.endswith(f".{MARK}") for name in self.file.shapes)

    def parts(self, mode: str) -> tuple[Part, ...]:
        """The parts of a mode, the model first. Raises ValueError for an unknown mode, WrongFile for one that the file lacks."""
        if mode not in MODES:
            raise ValueError(f"the mode is {mode!r}, expected is one of {', '.join(MODES)}")
        if mode not in self.modes:
            raise WrongFileError(
                f"{describe_path(self.file.path)} holds InternVL-C alone, without the {names.QUERIES} and cross attention of InternVL-G: "
                f"take mode C, or the checkpoint {SOURCE}."
            )
        return (self.model, self.reader) if mode == "G" else (self.model,)

    def tensors(self, part: Part) -> Iterator[tuple[str, torch.Tensor]]:
        """The part's own names and values, read one after another, with the scales of 8-bit weights."""
        for ours, source in with_scales(part.sources, self.file.shapes).items():
            yield ours, source.read(self.file.read)

    def text_encoder(self) -> TextEncoderFile:
        """The LLaMA inside the checkpoint. Raises WrongFile where it has none, or none that serves."""
        if self.open_text is None:
            raise WrongFileError(
                f"{describe_path(self.file.path)} holds InternVL's vision side alone: choose its text encoder too, the file in "
                f"models/text_encoders that was converted with it."
            )
        return self.open_text()


def open_internvl(path: Path) -> ContrastiveFile:
    """Opens a published folder, the single .pth or a converted file. Raises WrongFile for anything else, and for one that lacks a tensor."""
    return internvl_of(open_tensors(Path(path)))


def internvl_of(file: TensorFile) -> ContrastiveFile:
    """`open_internvl` of tensors that are open already."""
    path, original, file = file.path, file, as_published(file)
    if f"{names.VISION}embeddings.class_embedding" not in file.shapes or "text_projection" not in file.shapes:
        raise WrongFileError(
            f"{describe_path(path)} is {identify(original.shapes)}; expected is InternVL-C or -G, from {SOURCE}, in models/internvl."
        )
    told = read_config(file)
    try:
        config = names.model_configuration(file.shapes, told)
        model = Part(config, names.model_sources(config))
        reader = None
        if names.QUERIES in file.shapes:
            config = names.reader_configuration(file.shapes, told)
            reader = Part(config, names.reader_sources(config))
    except KeyError as error:
        raise WrongFileError(
            f"{describe_path(path)} is incomplete: it has no tensor {error.args[0]}. Download it again."
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise WrongFileError(f"{describe_path(path)} cannot be used: {error}. Download it again.") from error
    text = None
    if file is not original:

        def text():
            return text_encoder_of(internvl_c.as_published(original))
    elif any(name.startswith(f"{names.LLAMA}model.embed_tokens.") for name in file.shapes):

        def text():
            return text_encoder_of(file)

    opened = ContrastiveFile(file, told, model, reader, text)
    _check(opened)
    return opened


def as_published(file: TensorFile) -> TensorFile:
    """The vision side of the single .pth under the published names; other files as they are."""
    return internvl_c.vision_as_published(file) if internvl_c.is_one(file.shapes) else file


def unexpected(opened: ContrastiveFile) -> list[str]:
    """The tensors of the file that nothing here knows; those of the LLaMA are the text encoder's to judge."""
    parts = opened.parts(opened.modes[-1])
    used = {
        name
        for part in parts
        for source in with_scales(part.sources, opened.file.shapes).values()
        for name in source.names
    }
    return [name for name in opened.file.shapes if name not in used and not names.unused(name)]


def _check(opened: ContrastiveFile) -> None:
    """Raises WrongFile where a tensor is missing, or has another shape than the model's."""
    shapes, path = opened.file.shapes, opened.file.path
    for part in opened.parts(opened.modes[-1]):
        missing = sorted(
            {name for source in with_scales(part.sources, shapes).values() for name in source.names} - shapes.keys()
        )
        if missing:
            raise WrongFileError(
                f"{describe_path(path)} is incomplete: {len(missing)} tensors are missing, the first is {missing[0]}. Download it again."
            )
        for ours, tensor in part.build(operations=nn, device="meta").state_dict().items():
            (published,) = part.sources[ours].names
            if shapes[published] != tuple(tensor.shape):
                raise WrongFileError(
                    f"{describe_path(path)}: {published} has the shape {list(shapes[published])}, expected is {list(tensor.shape)}. "
                    f"It is damaged, or another checkpoint's."
                )
