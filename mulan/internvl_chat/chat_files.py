"""A chat model's checkpoint, a published folder or one file -> its sizes, where each tensor comes from, and its
tokenizer.

Names and shapes come first; a tensor is read only when the model is filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.chat_names import LANGUAGE, as_published
from ..checkpoints.config import need_config
from ..checkpoints.identify import identify, is_internvl_chat
from ..checkpoints.language_tokenizers import TOKENIZER_FILES, Tokenizer, read_tokenizer, tokenizer_file
from ..checkpoints.tensor_files import TensorFile, WrongFileError, describe_path, open_tensors
from ..checkpoints.weight_check import check_weights, reading_sizes
from ..checkpoints.weight_source import WeightSource, has_quantized, with_scales
from . import chat_keys
from .chat_model import ChatConfig, InternVLChat

SOURCE = (
    "OpenGVLab on Hugging Face (InternVL2_5-1B to -8B, InternVL3-1B, -2B, -8B, -14B, -38B, InternVL3_5-1B to -38B, "
    "-Flash)"
)


@dataclass(frozen=True)
class ChatFile:
    """A checkpoint, opened; none of its weights is read yet. `file` has OpenGVLab's names, whatever its own are.

    system: the system prompt that it was trained with, empty where it names none.
    """

    file: TensorFile
    config_json: Mapping[str, Any]
    config: ChatConfig
    system: str

    @property
    def is_quantized(self) -> bool:
        return has_quantized(self.file.shapes)

    def build(self, *, operations: Any, language_operations: Any = None, dtype=None, device=None) -> InternVLChat:
        """Return the model without values. `language_operations`: for a language model whose weights are quantized."""
        return InternVLChat(
            self.config, operations=operations, language_operations=language_operations, dtype=dtype, device=device
        )

    def sources(self) -> dict[str, WeightSource]:
        """Return the published tensors of each of ours, the scales of quantized weights included."""
        return with_scales(chat_keys.sources(self.config, self.file.shapes), self.file.shapes)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield our names and values, read one after another."""
        for name, source in self.sources().items():
            yield name, source.read(self.file.read)

    def tokenizer_file(self, name: str) -> bytes | None:
        """Return what one of `TOKENIZER_FILES` holds, None where there is none."""
        return tokenizer_file(self.file, name)

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer inside the file or beside it.

        Raises WrongFileError where there is none, or it is another model's.
        """
        return read_tokenizer(self.file, self.config.language.vocab_size, SOURCE)


def open_chat(path: Path) -> ChatFile:
    """Open a folder or one file.

    Raises WrongFileError for anything else, and for a checkpoint that lacks a tensor or has one of another shape.
    """
    return chat_from_tensors(open_tensors(Path(path)))


def chat_from_tensors(file: TensorFile) -> ChatFile:
    """Do what `open_chat` does, with tensors that are open already."""
    path, file = file.path, as_published(file)
    if not is_internvl_chat(file.shapes):
        raise WrongFileError(
            f"{describe_path(path)} is {identify(file.shapes)}; expected an InternVL chat model, from {SOURCE}, in "
            f"models/internvl_chat."
        )
    config = need_config(file, SOURCE)
    with reading_sizes(path, f"Expected one from {SOURCE}"):
        sizes = chat_keys.configuration(file.shapes, config)
        opened = ChatFile(file, config.entries, sizes, config.text("system_message"))
    _check(opened)
    return opened


def unexpected(opened: ChatFile) -> list[str]:
    """Return the names of tensors that the model does not read."""
    known = {name for source in opened.sources().values() for name in source.names} | set(TOKENIZER_FILES)
    return [name for name in opened.file.shapes if name not in known and not chat_keys.unused(name)]


def _check(opened: ChatFile) -> None:
    """Raise WrongFileError where a tensor is missing, holds no weights, or has another shape than the model's."""
    state_dict = opened.build(operations=nn, device="meta").state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    check_weights(opened.file, opened.sources(), expected, quantized_in=LANGUAGE)
