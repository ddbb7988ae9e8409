"""The emoji world's autoencoder: what it restores, and what its further training leaves as it was."""

from __future__ import annotations

import torch

from mulan_nodes.mulan.tiny_models.full_width import AUTOENCODER
from mulan_nodes.mulan.tiny_models.packs import pack_path, read_pack
from mulan_nodes.tools.emoji_world import autoencoder_training as training
from mulan_nodes.tools.tinyworld.narrow import TinyAutoencoder


def shipped() -> TinyAutoencoder:
    packed, _ = read_pack(pack_path("emoji"))
    model = TinyAutoencoder(training.WIDTH)
    model.load_state_dict(
        {name.removeprefix(AUTOENCODER): tensor.float() for name, tensor in packed.items() if name in named(model)}
    )
    return model


def named(model: TinyAutoencoder) -> set[str]:
    return {AUTOENCODER + name for name in model.state_dict()}


def test_a_strict_reader_passes_every_thing_that_is_restored():
    """So what is drawn wrong is wrong in the latents: a lollipop's and a cherry blossom's details the decoder lost."""
    assert training.restored_wrong(shipped()) == []
    assert training.decibels(shipped()) > 26.5


def test_the_latents_stay_as_they_are(monkeypatch, tmp_path):
    """Else the base, which draws latents, would be another's."""
    monkeypatch.setattr(training, "VARIANTS", ("",))
    monkeypatch.setattr(training, "FURTHER", 1)
    monkeypatch.setattr(training, "restored_wrong", lambda _: [1])
    monkeypatch.setattr(training, "decibels", lambda _: 0.0)
    model, before = shipped(), shipped().state_dict()
    after = training.train_decoder_further(tmp_path, model).state_dict()
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"taesd_decoder"}
    again = training.train_decoder_further(tmp_path, shipped()).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in again.items())
