"""Trains the tiny VisionLLM on a CPU, stage by stage, and packs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from mulan_nodes.mulan.tiny_models.packs import read_pack

from ..tinyworld.pack import pack_file, rewrite_pack
from ..tinyworld.stages import SEED
from . import pack
from .architecture import build_grounding, build_pose
from .reader_training import train_reader
from .region_training import teach_regions
from .seeing_training import Seeing, train_on_reader, train_on_stand_ins
from .vocabulary import tokenizer_of, train_tokenizer

TOKENIZER = "tokenizer.model"
BEFORE_REGIONS = "visionllm_before_regions.safetensors.gz"
ESTIMATE = (
    "Training the tiny VisionLLM takes about three and a half hours of one CPU core (reading 45, grounding 40, "
    "pose 15, regions 115); interrupted, it goes on where it was. Where page faults are slow, MALLOC_MMAP_THRESHOLD_ "
    "and MALLOC_TRIM_THRESHOLD_ at 17179869184 make it several times faster."
)
READER_STEPS = 5200
STAND_IN_STEPS = 1500
DECODERS = {
    "grounding": (build_grounding, 3700),
    "pose": (build_pose, 1000),
}  # with the steps on the finished language model


def train(work_dir: Path) -> Path:
    """Runs what is not finished of all stages and writes the pack; interrupted, it goes on where it was.

    The last stage begins with a pack, `BEFORE_REGIONS`: with one in its place the others are not run.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    before = work_dir / BEFORE_REGIONS
    if not before.exists():
        unfinished = before.with_name(before.name + ".unfinished")
        shutil.copyfile(pack_file("visionllm", _train_parts(work_dir)), unfinished)
        unfinished.replace(before)
    packed, _ = read_pack(before)
    return rewrite_pack("visionllm", before, teach_regions(work_dir, packed))


def _train_parts(work_dir: Path) -> Path:
    """Returns the file of what reads and what sees, without questions about regions."""
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
    return pack.write(parts, tokenizer, work_dir / "tiny_visionllm.safetensors")
