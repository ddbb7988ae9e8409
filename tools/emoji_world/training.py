"""Trains the emoji world's models on a CPU, stage by stage."""

from __future__ import annotations

from pathlib import Path

from ..tinyworld import pack
from .adapter_training import FURTHER_STAGE, train_adapter, train_further
from .autoencoder_training import DECODER_STAGE, train_autoencoder, train_decoder_further
from .base_training import FURTHER_STAGE as UNET_STAGE
from .base_training import HEADS, train_base, train_base_further
from .sentence_training import train_whole_text_encoder

METADATA = {
    **pack.METADATA,
    "title": "MuLan Nodes: the emoji world",
    "description": "A tiny SD1.5 and its MuLan adapter that draw 130 things, trained from nothing on drawings of Noto "
    "Emoji and on names of Unicode CLDR",
}
ESTIMATE = (
    "Training the emoji world takes about two and a half hours of one CPU core (stages of 25, 10, 80, 6, 20, 10 "
    "minutes, and 105 for the text encoder unless it is there); interrupted, it goes on where it was."
)


def main(work_dir: Path, text_dir: Path) -> None:
    """Runs what is not finished of all stages, one after the other, and writes the pack.

    text_dir: that of the text encoder, which the shapes share.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    autoencoder = train_decoder_further(work_dir, train_autoencoder(work_dir))
    text_encoder = train_whole_text_encoder(text_dir)
    base = train_base_further(work_dir, autoencoder, train_base(work_dir, autoencoder))
    adapter = train_adapter(work_dir, autoencoder, text_encoder, base)
    train_further(work_dir, autoencoder, text_encoder, base, adapter)
    print(f"the pack: {build(work_dir)}", flush=True)


def build(work_dir: Path) -> Path:
    """Writes base, autoencoder and adapter as one pack; the text encoder is in that of the shapes."""
    return pack.write_pack("emoji", pack.gather(work_dir, HEADS, FURTHER_STAGE, DECODER_STAGE, UNET_STAGE), METADATA)
