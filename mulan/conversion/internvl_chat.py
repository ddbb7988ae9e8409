"""A dialogue model's folder -> one .safetensors with its configuration and tokenizer inside, the language model's matrices in 8 bits or float16.

OpenGVLab's names, whatever the folder has, so that `open_chat` reads it as it reads a folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..checkpoints.quantization import FORMATS, Quantization, plain_dtype
from ..checkpoints.tensor_files import CONFIG, TensorFile, WrongFileError, describe_path, open_tensors
from ..internvl_chat.chat_files import SOURCE, ChatFile, open_chat
from ..internvl_chat.chat_keys import as_published
from ..internvl_chat.chat_tokenizer import TOKENIZER_FILES
from .output_files import Output, plain_forms, plan_output, source_notes, stem, target_path


def output(source: Path, target: Path, format: str, overwrite: bool) -> Output:
    """The file to write at `target`, or in it where it is a folder. Raises WrongFile, CannotWrite, NotFinite.

    Values that are not quantised are read for their dtype, before anything is written.
    """
    opened, quantization = open_chat(source), FORMATS[format]
    if opened.is_quantised:
        raise WrongFileError(
            f"{describe_path(source)} holds weights in 8 bits already: convert the published checkpoint, from {SOURCE}."
        )
    opened.words()
    path = target_path(source, target, f"{stem(source)}_{format}.safetensors", overwrite)
    wanted = list(dict.fromkeys(name for part in opened.sources().values() for name in part.names))

    def again() -> TensorFile:
        return as_published(open_tensors(source))

    matrices = _matrices(opened, quantization) if quantization else set()
    forms = dict.fromkeys(matrices, quantization) | plain_forms(
        again, (name for name in wanted if name not in matrices), _plain
    )
    files = {
        name: torch.frombuffer(bytearray(content), dtype=torch.uint8)
        for name in TOKENIZER_FILES
        if (content := opened.tokenizer_file(name))
    }
    config = opened.config.language
    title = f"{stem(source)} (language model of {config.layers} layers, width {config.width}) in {format}"
    metadata = {
        **source_notes(title, source, SOURCE),
        CONFIG: json.dumps(opened.told),
        "quantization": quantization.format if quantization else "none",
        "license": "as its model card states it: MIT or Apache-2.0, and its language model's",
    }
    return plan_output(path, title, "internvl_chat", metadata, again, {name: name for name in wanted}, forms, files)


def _matrices(opened: ChatFile, quantization: Quantization) -> set[str]:
    """The published names of the weights that are kept in 8 bits. A table that also writes words is as exact as others' second table."""
    tied = "language.model.embed_tokens.weight" if opened.config.language.tied else None
    return {
        name
        for ours, source in opened.sources().items()
        if ours.startswith("language.") and ours != tied and quantization.takes(ours.removeprefix("language."))
        for name in source.names
    }


def _plain(name: str, value: torch.Tensor) -> torch.dtype:
    """16 bits: its own, or what holds it."""
    return value.dtype if value.dtype in (torch.float16, torch.bfloat16) else plain_dtype(name, value)
