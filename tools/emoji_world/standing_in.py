"""A narrow text encoder that stands for the whole one by a linear layer, and its file in the layout of InternVL's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from mulan_nodes.mulan.checkpoints.tensor_files import CONFIG
from mulan_nodes.mulan.conditioning.model_files import SPIECE, open_text_encoder
from mulan_nodes.mulan.conditioning.text_config import OUTPUT

from ..tinyworld.text_training import TextEncoder, llama


class Widened(nn.Module):
    """A narrow text encoder, and the linear layer that makes states of the whole one's width of its own."""

    def __init__(self, model: LlamaModel, width: int):
        super().__init__()
        self.model, self.wide, self.config = model, nn.Linear(model.config.hidden_size, width), model.config

    def forward(self, *args, **options) -> BaseModelOutputWithPast:
        states = self.model(*args, **options).last_hidden_state
        return BaseModelOutputWithPast(last_hidden_state=self.wide(states))


def parameters(model: LlamaModel) -> int:
    """How many weights a text encoder has."""
    return sum(weight.numel() for weight in model.parameters())


def write_text_encoder(path: Path, encoder: TextEncoder) -> Path:
    """Writes a text encoder, or one behind `Widened`."""
    model: Any = encoder.model
    tensors = {_stored(name): tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    tensors[SPIECE] = torch.frombuffer(bytearray(encoder.tokenizer.serialized_model_proto()), dtype=torch.uint8)
    sizes = {name: getattr(model.config, name) for name in ("num_attention_heads", "rms_norm_eps")}
    save_file(tensors, path, {CONFIG: json.dumps(sizes)})
    return path


def read_text_encoder(path: Path, tokenizer: sentencepiece.SentencePieceProcessor) -> TextEncoder:
    """A narrow text encoder's file, behind `Widened`."""
    sizes, weights = open_text_encoder(path).config, load_file(path)
    layers, heads = sizes.num_hidden_layers, sizes.num_attention_heads
    narrow = llama(sizes.vocab_size, sizes.hidden_size, sizes.intermediate_size, layers, heads)
    model: Any = Widened(narrow, sizes.states_size)
    model.load_state_dict({name: weights[_stored(name)].float() for name in model.state_dict()})
    return TextEncoder(model, tokenizer)


def _stored(name: str) -> str:
    """A tensor's name in the file."""
    return name.replace("wide.", OUTPUT) if name.startswith("wide.") else f"model.{name.removeprefix('model.')}"
