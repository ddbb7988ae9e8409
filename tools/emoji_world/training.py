"""Trains the emoji world's models on a CPU, stage by stage."""

from __future__ import annotations

from pathlib import Path

from .adapter_training import train_adapter
from .autoencoder_training import train_autoencoder
from .base_training import train_base
from .text_training import train_text_encoder

ESTIMATE = (
    "Training the emoji world takes about three hours of one CPU core (stages of 25, 40, 80 and 20 minutes); "
    "interrupted, it goes on where it was."
)


def main(work_dir: Path) -> None:
    """Runs what is not finished of all stages, one after the other."""
    work_dir.mkdir(parents=True, exist_ok=True)
    autoencoder = train_autoencoder(work_dir)
    text_encoder = train_text_encoder(work_dir)
    train_adapter(work_dir, autoencoder, text_encoder, train_base(work_dir, autoencoder))
