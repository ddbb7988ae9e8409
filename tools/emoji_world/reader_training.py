"""Trains the strict reader on drawings, good and spoiled.

    python -m mulan_nodes.tools.emoji_world.reader_training FOLDER

The folder is that of the other stages, of which it needs the autoencoder. The result is kept as `reader.READER`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from ..tinyworld.narrow import TinyAutoencoder
from ..tinyworld.stages import SEED, as_input, as_pictures, is_finished, train_stage
from .autoencoder_training import train_autoencoder
from .reader import NONE, Reader, load
from .spoiled import KINDS, Dice, compose, fair, good, spoiled, things, wear

STAGE = "reader"
OF_EACH, RESTORED = 24, 2  # drawings of each thing, good and spoiled, and of them by the autoencoder
BATCH = 64


def drawings(
    dice: Dice, autoencoder: TinyAutoencoder, of_each: int, restored: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Good drawings, `of_each` of the things, and about as many spoiled ones, of all kinds in turn; uint8
    [N, 3, 96, 96], with labels [N].

    `restored` more of each thing, good and spoiled, are the autoencoder's.
    """
    pictures, labels = [], []

    def add(some: torch.Tensor, label: torch.Tensor):
        pictures.append(torch.from_numpy(as_pictures(wear(some, dice))).permute(0, 3, 1, 2))
        labels.append(label)

    every, none = torch.arange(NONE), torch.full((NONE,), NONE)
    for place in range(of_each):
        add(fair(things(), dice) if place % 2 else compose(good(things(), dice), dice), every)
        wrong, really = spoiled(list(KINDS)[place % len(KINDS)], things(), dice)
        add(wrong[really], none[really])
    for _ in range(restored):
        right, failed = restorations(autoencoder, dice)
        add(good(right, dice), every)
        add(good(failed, dice), none)
    return torch.cat(pictures).contiguous(), torch.cat(labels)


def moved(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """uint8 -> 0..1, shifted and a little brighter or darker: cheap enough for every step."""
    down, right = rng.integers(-2, 3, 2).tolist()
    light = torch.from_numpy(rng.uniform(0.9, 1.1, len(pictures))).float()[:, None, None, None]
    return (as_input(pictures).roll((down, right), (2, 3)) * light).clamp(max=1)


@torch.no_grad()
def restorations(autoencoder: TinyAutoencoder, dice: Dice) -> tuple[torch.Tensor, torch.Tensor]:
    """A drawing of each thing as the autoencoder restores it, float32 [130, 3, 96, 96], from latents with a little
    noise; and failed ones, from latents that are two things', smoothed, or full of noise.
    """
    latents = autoencoder.taesd_encoder(compose(good(things(), dice), dice))
    count = len(latents)
    noise = dice.normal(*latents.shape) * dice.uniform(0, 0.25, count)[:, None, None, None]
    second = latents[dice.uniform(0, 1, count).argsort()]
    share = dice.uniform(0.35, 0.65, count)[:, None, None, None]
    places = (F.interpolate(dice.normal(count, 1, 3, 3), latents.shape[2:], mode="bilinear") > 0).float()
    soft = F.avg_pool2d(F.avg_pool2d(latents, 3, 1, 1), 3, 1, 1)
    noisy = latents + dice.normal(*latents.shape) * dice.uniform(0.9, 1.4, count)[:, None, None, None]
    ways = (share * latents + (1 - share) * second, places * latents + (1 - places) * second, soft, noisy)
    failed = torch.stack(ways)[dice.below(len(ways), count), torch.arange(count)]
    return autoencoder.taesd_decoder(latents + noise).clamp(0, 1), autoencoder.taesd_decoder(failed).clamp(0, 1)


def train_reader(work_dir: Path, autoencoder: TinyAutoencoder, steps: int = 1600) -> Reader:
    """Writes reader.safetensors, float16."""
    if is_finished(STAGE, work_dir):
        return load(work_dir / f"{STAGE}.safetensors")
    torch.manual_seed(SEED)
    model = Reader().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (no such overload)
    pictures, labels = drawings(Dice(SEED), autoencoder, OF_EACH, RESTORED)
    held_out = drawings(Dice(SEED + 1), autoencoder, len(KINDS), 1)

    def loss_of(rng):
        # Each network has a batch of its own.
        some = torch.from_numpy(rng.integers(len(pictures), size=(2, BATCH)))
        with torch.autocast("cpu", torch.bfloat16):
            seen = [network(moved(pictures[rows], rng)) for network, rows in zip(model.networks(), some, strict=True)]
        return 2 * F.cross_entropy(torch.cat(seen).float(), labels[some.flatten()], label_smoothing=0.02)

    def score(copied):
        return figures(copied.eval(), *held_out)

    train_stage(
        STAGE, work_dir, model, loss_of, steps=steps, learning_rate=3e-3, average=0.99, score=score, score_every=500
    )
    path = work_dir / f"{STAGE}.safetensors"
    save_file(
        {key: value.half() if value.is_floating_point() else value for key, value in load_file(path).items()}, path
    )
    return load(path)


@torch.no_grad()
def figures(reader: Reader, pictures: torch.Tensor, labels: torch.Tensor) -> str:
    """How many of the good drawings are read right, and how many of the spoiled ones as some thing: first as the
    networks have it, then all in all.
    """
    seen = [torch.cat([network(as_input(part)) for part in pictures.split(128)]) for network in reader.networks()]
    named = [logits.argmax(-1) for logits in seen]
    read = torch.from_numpy(reader.read(pictures.permute(0, 2, 3, 1))) % (NONE + 1)  # -1 is NONE
    fine, lines = labels != NONE, []
    for name, found in (("colours", named[0]), ("edges", named[1]), ("all", read)):
        right, wrong = (found == labels)[fine].float().mean(), (found != NONE)[~fine].float().mean()
        lines.append(f"{name}: good ones right {right:.3f}, spoiled ones passed {wrong:.3f}")
    return "; ".join(lines)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    train_reader(folder, train_autoencoder(folder))
