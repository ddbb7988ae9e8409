"""Trains the tiny world's models on a CPU, stage by stage, and packs them."""

from __future__ import annotations

from pathlib import Path

from ..emoji_world.sentence_training import train_whole_text_encoder
from . import pack, pixart_training, sdxl_training
from .adapter_training import train_adapter
from .autoencoder_training import train_autoencoder
from .base_training import train_base
from .companion_training import train_companions

ESTIMATE = (
    "Training takes six hours of one CPU core (stages of 5, 115, 17, 15, 20, 25, 50, 60 and 15 minutes, the second of "
    "them the text encoder's, for both worlds); interrupted, it goes on where it was."
)


def main(work_dir: Path, text_dir: Path) -> int:
    """Runs what is not finished of all stages, one after the other, and writes the packs: the models' own, their
    companions', the tiny SDXL's and PixArt's.

    text_dir: that of the text encoder, which the emoji world shares.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    autoencoder = train_autoencoder(work_dir)
    text_encoder = train_whole_text_encoder(text_dir)
    base = train_base(work_dir, autoencoder)
    train_adapter(work_dir, autoencoder, text_encoder, base)
    sdxl_base = sdxl_training.train_base(work_dir, autoencoder)
    sdxl_training.train_adapter(work_dir, autoencoder, text_encoder, sdxl_base)
    pixart_base = pixart_training.train_base(work_dir, autoencoder)
    pixart_training.train_adapter(work_dir, autoencoder, text_encoder, pixart_base)
    companions = train_companions(work_dir)
    others = (training.build(work_dir) for training in (sdxl_training, pixart_training))
    for path in (pack.build(work_dir, text_dir), pack.build_companions(companions), *others):
        print(f"the pack: {path}, {path.stat().st_size / 1e6:.2f} MB", flush=True)
    return 0
