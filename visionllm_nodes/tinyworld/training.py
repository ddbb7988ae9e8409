"""Trains the tiny VisionLLM on a CPU, stage by stage, and packs it."""
from __future__ import annotations

from pathlib import Path

import torch

from ...mulan.tinyworld.stages import SEED
from . import pack
from .architecture import build_grounding, build_pose
from .reader_training import train_reader
from .seeing_training import Seeing, train_on_reader, train_on_stand_ins
from .vocabulary import tokenizer_of, train_tokenizer

TOKENIZER = "tokenizer.model"


def train(work_dir: Path) -> Path:
    """Runs what is not finished of all stages and writes the pack; interrupted, it goes on where it was."""
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / TOKENIZER
    if not path.exists():
        path.write_bytes(train_tokenizer())
    tokenizer = tokenizer_of(path.read_bytes())
    reader = train_reader(work_dir, tokenizer)
    parts = {name: getattr(reader.model, name) for name in ("tower", "bridge", "language", "super_link", "region_encoder")}
    for name, build in (("grounding", build_grounding), ("pose", build_pose)):
        torch.manual_seed(SEED)
        seeing = Seeing(build())
        train_on_stand_ins(name, work_dir, seeing)
        train_on_reader(name, work_dir, seeing, reader)
        parts[name] = seeing.decoder
    return pack.write(parts, tokenizer)
