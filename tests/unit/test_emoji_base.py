"""The emoji world's base: what it draws by itself, and what its further training leaves as it was."""

from __future__ import annotations

import torch

from mulan_nodes.mulan.tiny_models.full_width import CLIP, UNET, UNET_HEADS
from mulan_nodes.mulan.tiny_models.packs import pack_path, read_pack
from mulan_nodes.tests.unit.test_emoji_autoencoder import shipped as shipped_autoencoder
from mulan_nodes.tools.emoji_world import base_training as training
from mulan_nodes.tools.emoji_world.concepts import CHARACTERS, english
from mulan_nodes.tools.tinyworld import pack


def shipped() -> training.Base:
    packed, _ = read_pack(pack_path("emoji"))
    heads, base = int(packed[UNET_HEADS]), training.Base()

    def part(prefix, names):
        return {
            name: pack.unscaled_queries(prefix + stored, packed[prefix + stored].float(), heads)
            for name, stored in names.items()
        }

    base.unet.load_state_dict(part(UNET, {name: pack.unet_name(name) for name in base.unet.state_dict()}))
    base.clip.load_state_dict(part(CLIP, {name: name for name in base.clip.state_dict()}))
    return base


def test_every_thing_is_drawn_right_by_the_base_alone(monkeypatch):
    """So what is drawn wrong through an adapter is the text's fault: a zebra had no stripes."""
    monkeypatch.setattr(training, "SEEDS", 2)
    wrong = training.drawn_wrong(shipped_autoencoder(), shipped())
    assert wrong == []


def test_what_the_unet_reads_stays_as_it_is(monkeypatch, tmp_path):
    """Else the adapter, which gives it, would be another's."""
    monkeypatch.setattr(training, "VARIANTS", ("", *training.BACKGROUNDS))
    monkeypatch.setattr(training, "FURTHER", 1)
    monkeypatch.setattr(training, "BATCH", 2)
    zebra = [english(thing) for thing in range(len(CHARACTERS))].index("zebra")
    monkeypatch.setattr(training, "drawn_wrong", lambda *_: [zebra])
    base, before = shipped(), shipped().state_dict()
    after = training.train_base_further(tmp_path, shipped_autoencoder(), base).state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(after[name], before[name])}
    assert changed - {"looks"} == {"unet"}
    again = training.train_base_further(tmp_path, shipped_autoencoder(), shipped()).state_dict()
    assert all(torch.equal(again[name], after[name]) for name in before if not name.startswith("looks"))
