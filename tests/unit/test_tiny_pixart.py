"""The tiny PixArt: its full-width files, as ComfyUI loads them, compute what the narrow models do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaModel

from mulan_nodes.mulan.conditioning.adapter_sdxl import ProjectionShape, TextProjection
from mulan_nodes.mulan.tiny_models.packs import pack_path, read_pack
from mulan_nodes.mulan.training.diffusion import Context
from mulan_nodes.tools.tinyworld import pixart, pixart_training, text_training
from mulan_nodes.tools.tinyworld.pack import tokenizer_of


@pytest.fixture(scope="module")
def narrow_models():
    torch.manual_seed(3)
    transformer, adapter = pixart.Transformer(), pixart.adapter()
    with torch.no_grad():
        for parameter in [*transformer.parameters(), *adapter.parameters()]:
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return transformer, adapter


@pytest.fixture(scope="module")
def stored(narrow_models):
    transformer, adapter = narrow_models
    return pixart.gather(transformer.state_dict(), adapter.state_dict())


@torch.no_grad()
def test_the_full_transformer_equals_the_narrow_one(narrow_models, stored, tmp_path):
    import comfy.sd
    from comfy.supported_models import PixArtSigma

    save_file(pixart.checkpoint_of(stored), tmp_path / "pixart.safetensors")
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
        str(tmp_path / "pixart.safetensors"), output_clip=False, model_options={"dtype": torch.float32}
    )
    assert model is not None and isinstance(model.model.model_config, PixArtSigma) and clip is None and vae is not None
    narrow = narrow_models[0]
    x, timesteps = torch.randn(2, 4, 34, 34), torch.tensor([7, 941])
    rows, full_rows = torch.randn(2, 9, pixart.CAPTIONS), torch.zeros(2, 9, 4096)
    full_rows[..., : pixart.CAPTIONS] = rows
    expected = narrow(x, timesteps, Context(narrow.project(rows)))
    got = model.model.diffusion_model.float()(x, timesteps, context=full_rows)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    assert expected.std() > 0.1


@torch.no_grad()
def test_rows_that_are_masked_are_as_if_they_were_not_there(narrow_models):
    transformer = narrow_models[0]
    x, timesteps, rows = torch.randn(1, 4, 34, 34), torch.tensor([500]), torch.randn(1, 9, pixart.WIDTH)
    mask = torch.arange(9)[None] < 4
    masked, short = transformer(x, timesteps, Context(rows, mask=mask)), transformer(x, timesteps, Context(rows[:, :4]))
    torch.testing.assert_close(masked, short, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(short, transformer(x, timesteps, Context(rows)), atol=1e-2)


def test_the_rows_behind_the_end_are_hidden_in_the_end():
    base = pixart_training.Base(["", "a red star"])
    assert base.context([""]).mask is None
    base.hides_padding = True
    mask = base.context(["", "a red star"]).mask
    assert mask is not None and mask.sum(1).tolist() == [2, 5] and mask[1, :5].all()


def test_while_it_learns_words_give_way_to_those_of_another_text_and_ends_stay():
    texts = ["a red star", "a big blue circle"]
    base = pixart_training.Base(["", *texts])
    base.hides_padding, base.swapped_share = True, 1.0
    with torch.no_grad():
        own = base.context(texts)
    got = base.context(texts)
    assert own.mask is not None and got.mask is not None and torch.equal(got.mask, own.mask)
    (first, second), number = own.mask.sum(1) - 1, torch.arange(2)
    assert torch.equal(got.rows[number, own.mask.sum(1) - 1], own.rows[number, own.mask.sum(1) - 1])
    assert torch.equal(got.rows[0, :first], own.rows[1, :first])
    assert torch.equal(got.rows[1, :first], own.rows[0, :first])
    assert torch.equal(got.rows[1, first:second], own.rows[0, :1].expand(second - first, -1)), "the other has no more"
    assert base.telling_loss(got, np.array([0, 1]), torch.tensor([True, True])) == 0


@torch.no_grad()
def test_the_full_adapter_equals_the_narrow_one(narrow_models, stored):
    tensors = pixart.adapter_of(stored)
    shape = ProjectionShape.from_state_dict(tensors)
    assert (shape.text_hidden_size, shape.context_dim) == (4096, 1152)
    full = TextProjection(shape.text_hidden_size, shape.context_dim)
    full.load_state_dict(tensors)
    states, full_states = torch.randn(2, 7, 128), torch.zeros(2, 7, 4096)
    full_states[..., :128] = states
    got, expected = full(full_states), TextProjection.forward(narrow_models[1], states)
    torch.testing.assert_close(got[..., pixart.LIVE], expected, atol=1e-3, rtol=1e-3)
    dead = torch.ones(1152, dtype=torch.bool)
    dead[pixart.LIVE] = False
    assert not got[..., dead].any()


@torch.no_grad()
def test_the_wide_text_encoder_equals_the_narrow_one():
    packed, _ = read_pack(pack_path("world"))

    def states(tensors, eps, **sizes):
        config = {**text_training.llama(4000).config.to_dict(), "rms_norm_eps": eps, **sizes}
        model = LlamaModel(LlamaConfig(**{**config, "head_dim": config["hidden_size"] // text_training.HEADS}))
        model.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()})
        texts = [text_training.PREFIX + "a big red circle", "ein kleiner Stern"]
        rows = text_training.token_rows(tokenizer_of(packed), texts)
        return text_training.states_of(model, rows, torch.arange(40, 44))

    narrow = {name: tensor for name, tensor in packed.items() if name.startswith(("model.layers", "model.embed"))}
    narrow["model.norm.weight"] = packed["model.norm.weight"]
    wide = pixart.text_encoder_of(packed)
    del wide["spiece_model"]
    expected = states(narrow, 1e-6)
    got = states(wide, pixart.TEXT_CONFIG["rms_norm_eps"], hidden_size=4096)
    torch.testing.assert_close(got[..., :128], expected, atol=0.1, rtol=1e-2)
    assert not got[..., 128:].any()
