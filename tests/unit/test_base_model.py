"""The weights of the MODEL that an adapter replaces: exact, in any order with other patches, and gone afterwards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from mulan_nodes.mulan.conditioning.base_model import apply_adapter, check_family, detect_family
from mulan_nodes.mulan.conditioning.families import PIXART, SD15, SDXL
from mulan_nodes.mulan.conditioning.model_files import open_adapter

ADAPTER = (
    Path(__file__).resolve().parents[1]
    / "parity"
    / "goldens"
    / "mulan"
    / "weights"
    / "sdxl_embed_attnpool_tiny.safetensors"
)
FIRST = "diffusion_model.label_emb.0.0.weight"


@pytest.fixture
def adapter():
    return open_adapter(ADAPTER, SDXL)


@pytest.fixture
def model(adapter) -> ModelPatcher:
    """A MODEL that is nothing but the size embedding."""
    patch = adapter.model_patch()
    layers = [nn.Linear(*patch[f"diffusion_model.label_emb.0.{i}.weight"].shape[::-1]) for i in (0, 2)]
    module = nn.Module()
    module.diffusion_model = nn.Module()
    module.diffusion_model.label_emb = nn.Sequential(nn.Sequential(layers[0], nn.SiLU(), layers[1]))
    module.model_config = SimpleNamespace(unet_config={"context_dim": 2048})
    module.requires_grad_(False)
    return ModelPatcher(module, torch.device("cpu"), torch.device("cpu"))


def other_patch(shape) -> dict:
    """What a LoRA is to ComfyUI: a difference."""
    return {FIRST: ("diff", (torch.randn(shape, generator=torch.Generator().manual_seed(1)),))}


def weights(model: ModelPatcher) -> dict[str, torch.Tensor]:
    """The MODEL's weights as they are while it runs."""
    model.patch_model()
    try:
        return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    finally:
        model.unpatch_model()


def test_the_weights_are_the_adapters_and_the_models_own_come_back(model, adapter):
    own = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    patched = weights(apply_adapter(model, adapter))
    for name, tensor in adapter.model_patch().items():
        assert torch.equal(patched[name], tensor) and not torch.equal(own[name], tensor)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.model.state_dict().items())
    assert not model.patches, "the MODEL that came in was changed"


def test_another_patch_acts_before_and_after(model, adapter):
    wanted = adapter.model_patch()[FIRST] + other_patch(adapter.model_patch()[FIRST].shape)[FIRST][1][0]
    after = apply_adapter(model, adapter)
    after.add_patches(other_patch(wanted.shape))
    before = model.clone()
    before.add_patches(other_patch(wanted.shape))
    assert torch.equal(weights(after)[FIRST], wanted)
    assert torch.equal(weights(apply_adapter(before, adapter))[FIRST], wanted)


def test_a_merge_before_is_a_merge_of_models_that_have_the_weights(model, adapter):
    """Half of each model: with the same replacement in both, that replacement and half of the other's patch."""
    tensor = adapter.model_patch()[FIRST]
    difference = other_patch(tensor.shape)[FIRST][1][0]
    other = model.clone()
    other.add_patches(other_patch(tensor.shape))
    merged = model.clone()
    merged.add_patches({FIRST: other.get_key_patches()[FIRST]}, 0.5, 0.5)
    assert torch.allclose(weights(apply_adapter(merged, adapter))[FIRST], tensor + difference / 2, atol=1e-6)


def test_the_last_of_two_adapters_acts(model, adapter):
    first = model.clone()
    first.add_patches({name: ("set", (torch.zeros_like(tensor),)) for name, tensor in adapter.model_patch().items()})
    patched = weights(apply_adapter(first, adapter))
    assert all(torch.equal(patched[name], tensor) for name, tensor in adapter.model_patch().items())


def test_a_model_without_these_weights_is_refused(adapter):
    module = nn.Module()
    module.diffusion_model = nn.Linear(2, 2)
    module.model_config = SimpleNamespace(unet_config={"context_dim": 2048})
    bare = ModelPatcher(module, torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(
        ValueError,
        match="sdxl_embed_attnpool_tiny.safetensors"
        " replaces weights that the connected SimpleNamespace lacks.*label_emb",
    ):
        apply_adapter(bare, adapter)


def test_families_are_told_from_the_model(model):
    assert detect_family(model) is SDXL
    check_family(model, SDXL, "the adapter x")
    with pytest.raises(
        ValueError, match="the adapter x is for Stable Diffusion 1.5, but the connected MODEL is a SDXL model"
    ):
        check_family(model, SD15, "the adapter x")
    model.model.model_config.unet_config["context_dim"] = 3
    with pytest.raises(
        ValueError,
        match="is for PixArt, but the connected MODEL is a SimpleNamespace, a model that MuLan has no adapter for",
    ):
        check_family(model, PIXART, "the adapter x")
