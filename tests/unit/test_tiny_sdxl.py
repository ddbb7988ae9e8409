"""The tiny SDXL: its full-width files, as ComfyUI loads them, compute what the narrow models do."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mulan_nodes.mulan.conditioning.adapter import from_published, to_published
from mulan_nodes.mulan.conditioning.adapter_sdxl import AdapterShapeXL, LanguageAdapterXL
from mulan_nodes.mulan.training.adapters import SIZE_CHANNELS, SIZES, TwoAdapters
from mulan_nodes.tools.tinyworld import sdxl

VECTOR = sdxl.POOLED + SIZES * SIZE_CHANNELS


@pytest.fixture(scope="module")
def narrow_models() -> tuple[torch.nn.Module, TwoAdapters]:
    torch.manual_seed(3)
    unet, adapter = sdxl.unet(), sdxl.adapter()
    with torch.no_grad():
        for parameter in [*unet.parameters(), *adapter.parameters()]:
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (parameter if parameter.ndim == 1 else 0))
    return unet, adapter


@pytest.fixture(scope="module")
def stored(narrow_models):
    unet, adapter = narrow_models
    return sdxl.gather(unet.state_dict(), to_published(adapter.state_dict()))


@torch.no_grad()
def test_the_full_unet_equals_the_narrow_one(narrow_models, stored, tmp_path):
    import comfy.sd
    from comfy.supported_models import SDXL

    save_file(sdxl.checkpoint_of(stored), tmp_path / "sdxl.safetensors")
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
        str(tmp_path / "sdxl.safetensors"), output_clip=False, model_options={"dtype": torch.float32}
    )
    assert model is not None and isinstance(model.model.model_config, SDXL) and clip is None and vae is not None
    x, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([7, 941])
    rows, vector = torch.randn(2, 77, sdxl.FIRST + sdxl.SECOND), torch.randn(2, VECTOR)
    full_rows, full_vector = torch.zeros(2, 77, 2048), torch.zeros(2, 2816)
    full_rows[..., sdxl.CONTEXT.live] = rows
    full_vector[:, sdxl.VECTOR.live] = vector
    expected = narrow_models[0](x, timesteps, context=rows, y=vector)
    got = model.model.diffusion_model.float()(x, timesteps, context=full_rows, y=full_vector)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    assert expected.std() > 0.1


@torch.no_grad()
def test_the_full_adapter_equals_the_narrow_one(narrow_models, stored):
    narrow, tensors = narrow_models[1], sdxl.adapter_of(stored)
    shape = AdapterShapeXL.from_state_dict(tensors)
    assert (shape.first.context_dim, shape.second.context_dim, shape.pooled_dim) == (1280, 768, 1280)
    full = LanguageAdapterXL(shape)
    full.load_state_dict(from_published(tensors))
    states = torch.randn(2, 80, 128)
    expected = LanguageAdapterXL.forward(narrow, states)
    got = full(states)
    torch.testing.assert_close(got[..., sdxl.CONTEXT.live], expected, atol=2e-3, rtol=1e-3)
    pooled, full_pooled = narrow.pool(expected, None), full.pool(got, None)
    torch.testing.assert_close(full_pooled[:, : sdxl.POOLED], pooled, atol=2e-3, rtol=1e-3)
    dead = torch.ones(2048, dtype=torch.bool)
    dead[sdxl.CONTEXT.live] = False
    assert not got[..., dead].any() and not full_pooled[:, sdxl.POOLED :].any()
