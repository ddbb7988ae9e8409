"""The smaller text encoder of the emoji world: what it begins with, and that an adapter reads it."""

from __future__ import annotations

import torch

from mulan_nodes.mulan.conditioning.families import SD15
from mulan_nodes.mulan.conditioning.model_files import open_text_encoder
from mulan_nodes.mulan.tiny_models.packs import pack_path, read_pack
from mulan_nodes.mulan.training.teacher import Teacher
from mulan_nodes.tools.emoji_world import sentence_training, smaller
from mulan_nodes.tools.emoji_world.standing_in import parameters, write_text_encoder
from mulan_nodes.tools.tinyworld import narrow, pack
from mulan_nodes.tools.tinyworld.adapter_training import TextStates, fresh
from mulan_nodes.tools.tinyworld.text_training import PREFIX, TextEncoder, llama


def whole() -> TextEncoder:
    tokenizer = pack.tokenizer_of(read_pack(pack_path("world"))[0])
    torch.manual_seed(0)
    return TextEncoder(llama(tokenizer.get_piece_size()), tokenizer)


def test_the_smaller_text_encoder_has_three_tenths_of_the_weights_and_begins_with_the_widest_embeddings():
    encoder = whole()
    begun = smaller.begin(encoder.model)
    assert parameters(begun) <= 0.3 * parameters(encoder.model)
    ours, theirs = (model.embed_tokens.weight for model in (begun, encoder.model))
    assert ours.square().sum() > smaller.WIDTH / narrow.TEXT_WIDTH * theirs.square().sum()


def test_it_learns_to_tell_states_of_the_whole_width_and_an_adapter_reads_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(sentence_training, "agreement", lambda *_: "")
    encoder = whole()
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    begun, learned = (smaller.begin(encoder.model, 1, 16, 24) for _ in range(2))
    rounds = (sentence_training.Round("only", 1, 2e-3, 0.2, 0.04),)
    smaller.train_smaller(tmp_path, encoder, learned, rounds)
    untrained = begun.state_dict()
    assert any((tensor != untrained[name]).any() for name, tensor in learned.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.model.state_dict().items())

    again = smaller.train_smaller(tmp_path, encoder, begun, rounds)
    assert all(torch.equal(tensor, untrained[name]) for name, tensor in learned.state_dict().items())
    widened, alone = (TextEncoder(model, encoder.tokenizer) for model in (again, again.model))
    states = TextStates(alone)([PREFIX + "a lion", ""])
    assert states.shape == (2, 77, 16)
    assert fresh(lambda: narrow.adapter(16))(states).shape[-1] == narrow.CONTEXT_WIDTH
    file = open_text_encoder(write_text_encoder(tmp_path / "smaller.safetensors", widened))
    assert (file.config.hidden_size, file.states_size) == (16, narrow.TEXT_WIDTH)
    encoded = Teacher(file, SD15).encode(["a lion"]).states[0]
    wide = TextStates(widened)([PREFIX + "a lion"])[0]
    assert torch.allclose(wide, torch.cat([encoded[:1], encoded[4:]]), atol=1e-3)
