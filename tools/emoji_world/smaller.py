"""Trains a text encoder of three tenths of the weights, and an adapter of its own.

    python -m mulan_nodes.tools.emoji_world.smaller FOLDER

It needs no training before: the shipped models are the teacher and what draws. Writes smaller.safetensors, which MuLan
Loader takes in the shipped text encoder's place, and smaller.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaModel

from mulan_nodes.mulan.conditioning.adapter import LanguageAdapter

from ..tinyworld import narrow
from ..tinyworld.adapter_training import fresh
from ..tinyworld.stages import SEED
from ..tinyworld.text_training import TextEncoder, llama
from .adapter_training import train_adapter
from .base_training import Base
from .sentence_training import Pupil, Round, teach
from .shares import HEAD, read_shipped, row_of, shares_right
from .standing_in import Widened, parameters, write_text_encoder

LAYERS, WIDTH, INTERMEDIATE = 2, 56, 192
ROUNDS = (
    Round("text_encoder_smaller_first", 2000, 2e-3, sentences=0.2, noise=0.04),
    Round("text_encoder_smaller_second", 3000, 2e-3, sentences=0.1, noise=0.02),
    Round("text_encoder_smaller_third", 5000, 2e-3, sentences=0.15, noise=0.02, by_name=True),
    Round("text_encoder_smaller_fourth", 4000, 1.5e-3, sentences=0.1, noise=0.02, by_name=True),
)
ADAPTER_STEPS = 5000


def begin(whole: LlamaModel, layers: int = LAYERS, width: int = WIDTH, intermediate: int = INTERMEDIATE) -> LlamaModel:
    """A narrower text encoder before its training: its embeddings lie in the widest directions of the whole one's."""
    torch.manual_seed(SEED)
    model = llama(whole.config.vocab_size, width, intermediate, layers)
    embeddings = whole.embed_tokens.weight.detach()
    model.embed_tokens.weight.data.copy_(embeddings @ torch.linalg.svd(embeddings, full_matrices=False).Vh[:width].T)
    return model


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
