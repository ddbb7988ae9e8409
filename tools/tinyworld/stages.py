"""What the training stages share: the corpus, the loop, its checkpoints.

Every stage writes `<stage>.safetensors` into the work folder and is skipped when that file exists; while it runs it
keeps a checkpoint beside it, from which an interrupted run goes on exactly as it would have. Pictures, captions and
noise are drawn from the seed and the step alone.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from . import world

SEED = 20
CHECKPOINT_EVERY = 500
VARIANTS = 100  # drawings of each thing in the corpus

Model = TypeVar("Model", bound=nn.Module)


def draw_corpus(seed: int, variants: int = VARIANTS, things=world.THINGS, draw=world.draw) -> torch.Tensor:
    """`variants` drawings of each thing: uint8 [things, variants, 3, 64, 64]."""
    rng = np.random.default_rng(seed)
    pictures = np.stack([[draw(thing, rng) for _ in range(variants)] for thing in things])
    return torch.from_numpy(pictures).permute(0, 1, 4, 2, 3).contiguous()


def as_input(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 pictures -> float32 in 0..1, in the memory layout that convolutions on a CPU like best."""
    return (pictures.float() / 255).contiguous(memory_format=torch.channels_last)


def as_pictures(images: torch.Tensor) -> np.ndarray:
    """Float images [B, 3, H, W] in 0..1 -> uint8 arrays [B, H, W, 3]."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def train_stage(
    name: str,
    work_dir: Path,
    model: Model,
    loss_of: Callable[[np.random.Generator], torch.Tensor],
    *,
    steps: int,
    last: int | None = None,
    learning_rate: float,
    average: float = 0.0,
    score: Callable[[Model], str] | None = None,
    score_every: int = 1000,
) -> None:
    """Trains `model` (AdamW, warm-up then cosine, clipped gradients), or goes on from its checkpoint, and leaves the
    result in it.

    `loss_of` gets this step's own random generator; torch's global one is seeded for the step as well. `average` is the
    decay of a running average of the weights, which then is the result (0: none). `last`: the step behind which to stop
    before the learning rate has come down. `score` says, of a copy with the averaged weights, how good it is.
    """
    checkpoint_path = work_dir / f"{name}.checkpoint.pt"
    unfinished_path = checkpoint_path.with_suffix(".unfinished")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    averaged = {key: value.clone() for key, value in model.state_dict().items()}
    first = 0
    if checkpoint_path.exists():
        saved = torch.load(checkpoint_path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        averaged, first = saved["averaged"], saved["step"]
    started = time.monotonic()
    for step in range(first, last or steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        torch.manual_seed(SEED + step)
        loss = loss_of(np.random.default_rng((SEED, step)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(average, step / (step + 10))
        for key, value in model.state_dict().items():
            averaged[key].lerp_(value, 1 - decay) if value.is_floating_point() else averaged[key].copy_(value)
        if (step + 1) % 100 == 0:
            left = (time.monotonic() - started) / (step + 1 - first) * (steps - step - 1)
            print(f"{name}: step {step + 1} of {steps}, loss {loss.item():.4f}, {left:.0f} s left", flush=True)
        if score and (step + 1) % score_every == 0:
            copied = copy.deepcopy(model)
            copied.load_state_dict(averaged)
            print(f"{name}: {score(copied)}", flush=True)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "averaged": averaged,
                "step": step + 1,
            }
            torch.save(state, unfinished_path)
            unfinished_path.replace(checkpoint_path)
    model.load_state_dict(averaged)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, work_dir / f"{name}.safetensors")
    checkpoint_path.unlink(missing_ok=True)


def is_finished(name: str, work_dir: Path) -> bool:
    return (work_dir / f"{name}.safetensors").exists()
