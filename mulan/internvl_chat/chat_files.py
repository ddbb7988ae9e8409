"""A dialogue model's checkpoint, a published folder or one file -> its sizes, where each tensor comes from, and its tokenizer.

Names and shapes come first; a tensor is read only when the model is filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.identify import identify, is_internvl_chat
from ..checkpoints.tensor_files import CONFIG, TensorFile, WrongFileError, describe_path, open_tensors, read_config
from ..checkpoints.weight_source import MARK, WeightSource, with_scales
from . import chat_keys as published
from .chat_model import ChatConfig, InternVLChat
from .chat_tokenizer import FILES, Words, read_words

SOURCE = "OpenGVLab on Hugging Face (InternVL2_5-1B to -8B, InternVL3-1B, -2B, -8B, InternVL3_5-1B to -8B)"


@dataclass(frozen=True)
class ChatFile:
    """A checkpoint, opened; nothing of its weights is read yet. `file` has OpenGVLab's names, whatever its own are."""

    file: TensorFile
    told: Mapping[str, Any]  # config.json
    config: ChatConfig

    @property
    def is_quantised(self) -> bool:
        return any(name.endswith(f".{MARK}") for name in self.file.shapes)

    def build(self, *, operations, language_operations=None, dtype=None, device=None) -> InternVLChat:
        """The model without values."""
        return InternVLChat(
            self.config, operations=operations, language_operations=language_operations, dtype=dtype, device=device
        )

    def sources(self) -> dict[str, WeightSource]:
        """Our names -> the published tensors, the scales of 8-bit weights included."""
        return with_scales(published.sources(self.config, self.file.shapes), self.file.shapes)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Our names and values, read one after another."""
        for ours, source in self.sources().items():
            yield ours, source.read(self.file.read)

    def tokenizer_file(self, name: str) -> bytes | None:
        """What one of `words.FILES` holds: those inside a converted file, else those of the folder; None where there is none."""
        if CONFIG in self.file.metadata:
            return self.file.read(name).numpy().tobytes() if name in self.file.shapes else None
        path = (self.file.path if self.file.path.is_dir() else self.file.path.parent) / name
        return path.read_bytes() if path.is_file() else None

    def words(self) -> Words:
        """The tokenizer inside the file or beside it. Raises WrongFile where there is none, or it is another model's."""
        advice = f"Keep the tokenizer's files of the published folder, from {SOURCE}, with the weights."
        try:
            words = read_words(self.tokenizer_file)
        except ValueError as error:
            raise WrongFileError(
                f"{describe_path(self.file.path)} has no tokenizer that serves: {error}. {advice}"
            ) from error
        if words.size > self.config.language.vocabulary:
            raise WrongFileError(
                f"{describe_path(self.file.path)}: its tokenizer knows {words.size} tokens, and its language model embeds "
                f"{self.config.language.vocabulary}: it is another model's. {advice}"
            )
        return words


def open_chat(path: Path) -> ChatFile:
    """Opens a folder or one file. Raises WrongFile for anything else, and for a checkpoint that lacks or mistakes a tensor."""
    return read_chat(open_tensors(Path(path)))


def read_chat(file: TensorFile) -> ChatFile:
    """`open_chat` of tensors that are open already."""
    path, file = file.path, published.as_published(file)
    if not is_internvl_chat(file.shapes):
        raise WrongFileError(
            f"{describe_path(path)} is {identify(file.shapes)}; expected is an InternVL that talks, from {SOURCE}, in models/internvl_chat."
        )
    told = read_config(file)
    if not told:
        raise WrongFileError(
            f"{describe_path(path)} has no config.json, which tells what its tensors do not. Keep that of {SOURCE} with the weights."
        )
    try:
        opened = ChatFile(file, told, published.configuration(file.shapes, told))
    except KeyError as error:
        raise WrongFileError(
            f"{describe_path(path)} is incomplete: there is no {error.args[0]} in it or its config.json. Download it again."
        ) from error
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise WrongFileError(
            f"{describe_path(path)} cannot be used: {error}. Expected is one from {SOURCE}."
        ) from error
    _check(opened)
    return opened


def unexpected(opened: ChatFile) -> list[str]:
    """The tensors of the file that the model does not read."""
    used = {name for source in opened.sources().values() for name in source.names}
    return [
        name for name in opened.file.shapes if name not in used and name not in FILES and not published.unused(name)
    ]


def _check(opened: ChatFile) -> None:
    """Raises WrongFile where a tensor is missing, or has another shape than the model's."""
    shapes, path, sources = opened.file.shapes, opened.file.path, opened.sources()
    missing = sorted({name for source in sources.values() for name in source.names} - shapes.keys())
    if missing:
        raise WrongFileError(
            f"{describe_path(path)} is incomplete: {len(missing)} tensors are missing, the first is {missing[0]}. Download it again."
        )
    for ours, tensor in opened.build(operations=nn, device="meta").state_dict().items():
        names = sources[ours].names
        try:
            given = tuple(sources[ours].read(lambda name: torch.empty(shapes[name], device="meta")).shape)
        except (RuntimeError, ValueError):  # rows that cannot be shared out among the heads
            given = None
        if given != tuple(tensor.shape):
            raise WrongFileError(
                f"{describe_path(path)}: {', '.join(names)} ({list(shapes[names[0]])}) cannot be {ours} of {list(tensor.shape)}: the file is "
                f"damaged, or its config.json is another checkpoint's."
            )
