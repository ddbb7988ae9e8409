"""An InternVL chat model's folder -> one .safetensors with its configuration and tokenizer inside.

The language model's matrices are quantized or in float16. The names are OpenGVLab's, whatever the folder has, so that
`open_chat` reads it as it reads a folder.
"""

from __future__ import annotations

import json

import torch

from ..checkpoints.identify import is_internvl_chat
from ..checkpoints.language_tokenizers import TOKENIZER_FILES
from ..checkpoints.quantization import FORMATS, Quantization, plain_dtype
from ..checkpoints.tensor_files import CONFIG, TensorFile
from ..internvl_chat.chat_files import SOURCE, ChatFile, chat_from_tensors
from .output_files import (
    Converter,
    Plan,
    Target,
    as_bytes,
    make_metadata,
    plan_output,
    plan_precisions,
    refuse_quantized,
    stem,
)


def matches(file: TensorFile) -> bool:
    """Return whether it is an InternVL chat model."""
    return is_internvl_chat(file.shapes)


def plan(source: TensorFile, target: Target, weight_format: str) -> Plan:
    """Plan the one file of a chat model."""
    opened, quantization = chat_from_tensors(source), FORMATS[weight_format]
    refuse_quantized(source.path, opened.file.shapes, SOURCE)
    opened.tokenizer()
    name = stem(source.path)
    path = target.file(f"{name}_{weight_format}.safetensors")
    wanted = list(dict.fromkeys(name for part in opened.sources().values() for name in part.names))
    matrices = _matrices(opened, quantization) if quantization else set()
    precisions = plan_precisions(opened.file, wanted, matrices, quantization, _plain)
    files = {name: as_bytes(content) for name in TOKENIZER_FILES if (content := opened.tokenizer_file(name))}
    config = opened.config.language
    title = (
        f"{name} (language model of {config.num_hidden_layers} layers, width {config.hidden_size}) in {weight_format}"
    )
    metadata = make_metadata(
        title,
        source.path,
        SOURCE,
        license="as its model card states it: MIT or Apache-2.0, and its language model's",
        weight_format=weight_format,
        **{CONFIG: json.dumps(opened.config_json)},
    )
    names = {name: name for name in wanted}
    return Plan((plan_output(path, title, "internvl_chat", metadata, opened.file, names, precisions, files),))


def _matrices(opened: ChatFile, quantization: Quantization) -> set[str]:
    """Return the published names of the weights to quantize.

    An embedding table that also writes tokens (tied) stays as exact as the second table of other models.
    """
    tied = None if opened.config.language.lm_head else "language_model.model.embed_tokens.weight"
    return {
        name
        for ours, source in opened.sources().items()
        if ours.startswith("language_model.")
        and ours != tied
        and quantization.applies_to(ours.removeprefix("language_model."))
        for name in source.names
    }


def _plain(name: str, tensor: torch.Tensor) -> torch.dtype:
    """Return the tensor's own 16 bits, or those that hold it."""
    return tensor.dtype if tensor.dtype in (torch.float16, torch.bfloat16) else plain_dtype(name, tensor)


CONVERTER = Converter(matches, plan)
