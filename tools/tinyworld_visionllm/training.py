"""Trains the tiny VisionLLM on a CPU, stage by stage, and packs it."""

from __future__ import annotations

from pathlib import Path

import torch

from ..tinyworld.pack import pack_file
from ..tinyworld.stages import SEED
from . import pack
from .architecture import build_grounding, build_pose
from .reader_training import train_reader
from .seeing_training import Seeing, train_on_reader, train_on_stand_ins
from .vocabulary import tokenizer_of, train_tokenizer

TOKENIZER = "tokenizer.model"
ESTIMATE = (
    "Training the tiny VisionLLM takes about 100 minutes of one CPU core (reading 45, grounding 40, pose 15); "
    "interrupted, it goes on where "
    "it was. Where page faults are slow, MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ at 17179869184 make it "
    "several times faster."
)
READER_STEPS = 5200
STAND_IN_STEPS = 1500
DECODERS = {
    "grounding": (build_grounding, 3700),
    "pose": (build_pose, 1000),
}  # with the steps on the finished language model


def train(work_dir: Path) -> Path:
    """Runs what is not finished of all stages and writes the pack; interrupted, it goes on where it was."""
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / TOKENIZER
    if not path.exists():
        path.write_bytes(train_tokenizer())
    tokenizer = tokenizer_of(path.read_bytes())
    reader = train_reader(work_dir, tokenizer, READER_STEPS)
    parts = {
        name: getattr(reader.model, name) for name in ("tower", "bridge", "language", "super_link", "region_encoder")
    }
    for name, (build, steps) in DECODERS.items():
        torch.manual_seed(SEED)
        seeing = Seeing(build())
        train_on_stand_ins(name, work_dir, seeing, STAND_IN_STEPS)
        train_on_reader(name, work_dir, seeing, reader, steps)
        parts[name] = seeing.decoder
    return pack_file("visionllm", pack.write(parts, tokenizer, work_dir / "tiny_visionllm.safetensors"))
