"""Trains a text encoder of three tenths of the weights, and an adapter of its own.

    python -m mulan_nodes.tools.emoji_world.smaller FOLDER

It needs no training before: the shipped models are the teacher and what draws. Writes smaller.safetensors, which MuLan
Loader takes in the shipped text encoder's place, and smaller.md.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from mulan_nodes.mulan.checkpoints.tensor_files import CONFIG
from mulan_nodes.mulan.conditioning.adapter import LanguageAdapter
from mulan_nodes.mulan.conditioning.model_files import SPIECE
from mulan_nodes.mulan.conditioning.text_config import OUTPUT
from mulan_nodes.mulan.tiny_models.full_width import UNET_HEADS
from mulan_nodes.mulan.tiny_models.packs import pack_path, read_pack

from ..tinyworld import narrow
from ..tinyworld.adapter_training import TextStates, fresh
from ..tinyworld.companions import load_packed, packed_text_encoder
from ..tinyworld.stages import SEED, as_pictures
from ..tinyworld.text_training import TextEncoder
from . import reader
from .adapter_training import draw_names, train_adapter
from .autoencoder_training import WIDTH as AUTOENCODER_WIDTH
from .base_training import Base
from .concepts import trained_languages
from .evaluation import MULAN, choose, name_cases
from .sentence_training import Pupil, Round, teach

LAYERS, WIDTH, INTERMEDIATE = 2, 56, 192
ROUNDS = (
    Round("text_encoder_smaller_first", 2000, 2e-3, sentences=0.2, noise=0.04),
    Round("text_encoder_smaller_second", 3000, 2e-3, sentences=0.1, noise=0.02),
    Round("text_encoder_smaller_third", 5000, 2e-3, sentences=0.15, noise=0.02, by_name=True),
    Round("text_encoder_smaller_fourth", 4000, 1.5e-3, sentences=0.1, noise=0.02, by_name=True),
)
ADAPTER_STEPS = 5000
HEAD = "| text encoder | parameters | English | mean of the others | lowest |\n| --- | --: | --: | --: | --: |"
ASKED = 24  # names in each language, all things equally often


def begin(whole: LlamaModel, layers: int = LAYERS, width: int = WIDTH, intermediate: int = INTERMEDIATE) -> LlamaModel:
    """A narrower text encoder before its training: its embeddings lie in the widest directions of the whole one's."""
    config = copy.deepcopy(whole.config)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = layers, width, intermediate
    config.head_dim = width // config.num_attention_heads
    torch.manual_seed(SEED)
    model, embeddings = LlamaModel(config), whole.embed_tokens.weight.detach()
    model.embed_tokens.weight.data.copy_(embeddings @ torch.linalg.svd(embeddings, full_matrices=False).Vh[:width].T)
    return model


class Widened(nn.Module):
    """A narrow text encoder, and the linear layer that makes states of the whole one's width of its own."""

    def __init__(self, model: LlamaModel, width: int):
        super().__init__()
        self.model, self.wide, self.config = model, nn.Linear(model.config.hidden_size, width), model.config

    def forward(self, *args, **options) -> BaseModelOutputWithPast:
        states = self.model(*args, **options).last_hidden_state
        return BaseModelOutputWithPast(last_hidden_state=self.wide(states))


def train_smaller(work_dir: Path, whole: TextEncoder, model: LlamaModel, rounds: tuple[Round, ...] = ROUNDS) -> Widened:
    """Trains a narrower text encoder to tell, of a caption in any language, the states that the whole one has of the
    bare English words.
    """
    student = Widened(model, whole.model.config.hidden_size)
    teach(work_dir, Pupil(whole, student), whole.tokenizer, rounds)
    return student


def train_own_adapter(
    work_dir: Path, autoencoder: narrow.TinyAutoencoder, text_encoder: TextEncoder, base: Base
) -> LanguageAdapter:
    """Trains an adapter for a text encoder of any width, as that of the world is: on English alone."""
    begun = fresh(lambda: narrow.adapter(text_encoder.model.config.hidden_size))
    return train_adapter(
        work_dir, autoencoder, text_encoder, base, ADAPTER_STEPS, name="adapter_of_smaller", begun=begun
    )


def shares_right(
    autoencoder: narrow.TinyAutoencoder, text_encoder: TextEncoder, base: Base, adapter: LanguageAdapter
) -> dict[str, float]:
    """The share of names in each language that is drawn right."""
    judge, states, shares = reader.load(), TextStates(text_encoder), {}
    for turn, code in enumerate(trained_languages()):
        cases = name_cases(MULAN, code, choose(ASKED, SEED, turn=turn))
        drawn = draw_names(autoencoder, states, base, adapter, [case.prompt for case in cases])
        shares[code] = float(judge.agrees(as_pictures(drawn), [case.expected.thing for case in cases]).mean())
    return shares


def parameters(model: LlamaModel) -> int:
    """How many weights a text encoder has."""
    return sum(weight.numel() for weight in model.parameters())


def read_shipped() -> tuple[narrow.TinyAutoencoder, TextEncoder, Base, LanguageAdapter]:
    """The shipped models, narrow: autoencoder, text encoder, base and adapter."""
    packed, _ = read_pack(pack_path("emoji"))
    base, autoencoder, adapter = Base(), narrow.TinyAutoencoder(AUTOENCODER_WIDTH), narrow.adapter()
    load_packed(packed, base, autoencoder, adapter, int(packed[UNET_HEADS]))
    return autoencoder, packed_text_encoder(read_pack(pack_path("world"))[0]), base, adapter


def write_text_encoder(path: Path, encoder: TextEncoder) -> Path:
    """Writes a text encoder, or one behind `Widened`, in the layout of InternVL's."""
    model: Any = encoder.model
    tensors = {
        name.replace("wide.", OUTPUT) if name.startswith("wide.") else f"model.{name.removeprefix('model.')}": tensor
        for name, tensor in model.state_dict().items()
    }
    tensors = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    tensors[SPIECE] = torch.frombuffer(bytearray(encoder.tokenizer.serialized_model_proto()), dtype=torch.uint8)
    sizes = {name: getattr(model.config, name) for name in ("num_attention_heads", "rms_norm_eps")}
    save_file(tensors, path, {CONFIG: json.dumps(sizes)})
    return path


def row_of(name: str, count: int, shares: dict[str, float]) -> str:
    """A row below `HEAD`: a text encoder, its parameters, and the shares of `shares_right`."""
    others = [share for code, share in shares.items() if code != "en"]
    return f"| {name} | {count} | {shares['en']:.2f} | {np.mean(others):.3f} | {min(others):.2f} |"


def main(work_dir: Path) -> None:
    autoencoder, whole, base, adapter = read_shipped()
    student = train_smaller(work_dir, whole, begin(whole.model))
    models: tuple[Any, Any] = student, student.model
    standing_in, alone = (TextEncoder(model, whole.tokenizer) for model in models)
    write_text_encoder(work_dir / "smaller.safetensors", standing_in)
    own = train_own_adapter(work_dir, autoencoder, alone, base)
    lines = [HEAD]
    for name, encoder, reads in (("whole", whole, adapter), ("widened", standing_in, adapter), ("alone", alone, own)):
        lines.append(row_of(name, parameters(encoder.model), shares_right(autoencoder, encoder, base, reads)))
        print(lines[-1], flush=True)
    (work_dir / "smaller.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
