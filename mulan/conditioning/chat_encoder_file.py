"""A small text encoder: the language model inside an InternVL chat file, of which nothing else is read.

The file is what `open_chat` reads, a published folder (OpenGVLab's or "-hf") or one converted file, or what the stock
CLIPSave wrote of such a text encoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.text_encoders import llama
from torch import nn

from ..checkpoints.chat_names import LANGUAGE, as_published
from ..checkpoints.config import need_config
from ..checkpoints.identify import is_internvl_chat
from ..checkpoints.language_model import LanguageConfig, language_config, language_section, language_sources
from ..checkpoints.language_tokenizers import TOKENIZER_FILES, read_tokenizer, tokenizer_file
from ..checkpoints.tensor_files import CONFIG, TensorFile, WrongFileError, describe_path
from ..checkpoints.weight_check import check_weights, reading_sizes
from ..checkpoints.weight_source import WeightSource, with_scales
from .chat_pieces import ChatPieces
from .encoder_kinds import MODEL_KINDS, SAVED_PREFIX, fingerprint_of, saved_config

CHAT_SOURCE = (
    "OpenGVLab on Hugging Face (InternVL2_5-1B and -2B, InternVL3-1B and -2B, InternVL3_5-1B and -2B; their larger "
    "sizes are read too)"
)


@dataclass(frozen=True)
class ChatEncoderFile:
    """A recognized small text encoder. `file` has OpenGVLab's names, `entries` are config.json's of the language model.

    kind: one of `KINDS`. It has no projection of its own, so `projection_dim` is None.
    """

    file: TensorFile
    config: LanguageConfig
    entries: Mapping[str, Any]
    kind: str
    projection_dim: None = None

    @property
    def states_size(self) -> int:
        """The width of its states."""
        return self.config.hidden_size

    def tokenizer(self) -> ChatPieces:
        """Return the tokenizer. Raises WrongFileError where there is none, or it is another model's."""
        tokenizer = read_tokenizer(self.file, self.config.vocab_size, CHAT_SOURCE)
        files = {name: content for name in TOKENIZER_FILES if (content := tokenizer_file(self.file, name))}
        try:
            return ChatPieces(tokenizer, files)
        except ValueError as error:
            raise WrongFileError(
                f"{describe_path(self.file.path)} has a tokenizer that no prompt can be read with: {error}. Keep that "
                f"of the published folder, from {CHAT_SOURCE}."
            ) from error

    def sources(self) -> dict[str, WeightSource]:
        """Return the published tensors of each of ours, the scales of quantized weights included."""
        of_model = language_sources(self.config, self.file.shapes)
        return with_scales(
            {name: source for name, source in of_model.items() if not name.endswith("lm_head.weight")}, self.file.shapes
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Read the language model's tensors under the keys of ComfyUI's LLaMA, on the CPU, in the file's own dtypes;
        float64 in float32.
        """
        read = {name.removeprefix(LANGUAGE): source.read(self.file.read) for name, source in self.sources().items()}
        return {name: tensor.float() if tensor.dtype == torch.float64 else tensor for name, tensor in read.items()}

    def fingerprint(self) -> str:
        """Return what an adapter's file calls this text encoder; see `fingerprint_of`."""
        sizes = self.config.vocab_size, self.config.hidden_size, self.config.num_hidden_layers
        sources = self.sources()
        return fingerprint_of(self.kind, sizes, lambda name: sources[f"{LANGUAGE}{name}"].read(self.file.read))

    def config_tensor(self) -> torch.Tensor:
        """Return what tensors cannot tell, as JSON in a uint8 tensor, for `SAVED_CONFIG`."""
        return torch.frombuffer(bytearray(json.dumps({"llm_config": dict(self.entries)}).encode()), dtype=torch.uint8)


def is_chat_encoder(file: TensorFile) -> bool:
    """Return whether a chat model's language model is in a file."""
    return is_internvl_chat(file.shapes) or bool(saved_config(file))


def chat_encoder_from_tensors(file: TensorFile) -> ChatEncoderFile:
    """Recognize the language model of a chat file without reading its weights.

    Raises WrongFileError for one that lacks a tensor, has one of another shape, or is of another kind.
    """
    path, saved = file.path, saved_config(file)
    file = _from_saved(file, saved) if saved else replace(as_published(file), content=file.content)
    config = need_config(file, CHAT_SOURCE)
    with reading_sizes(path, f"Expected one from {CHAT_SOURCE}"):
        section = language_section(config)
        sizes = replace(language_config(file.shapes, section), lm_head=False)
    opened = ChatEncoderFile(file, sizes, section.entries, MODEL_KINDS[section.text("model_type")])
    expected = {
        f"{LANGUAGE}model.{name}": tuple(tensor.shape)
        for name, tensor in llama.Llama2_(sizes, device="meta", ops=nn).state_dict().items()
    }
    check_weights(file, opened.sources(), expected, quantized_in=LANGUAGE)
    return opened


def _from_saved(file: TensorFile, config: str) -> TensorFile:
    """Return a file of the stock CLIPSave as a converted chat file without the parts that see."""
    names = {
        f"{LANGUAGE}{name.removeprefix(SAVED_PREFIX)}": name
        for name in file.shapes
        if name.startswith(f"{SAVED_PREFIX}model.")
    }
    names |= {name: name for name in TOKENIZER_FILES if name in file.shapes}
    return replace(file.renamed(names, {**file.metadata, CONFIG: config}), content=file.content)
