"""What models are really computed in, where nobody chose and where somebody did."""

import numpy as np
import pytest
import torch

from mulan_nodes.mulan.conditioning import internvl_llama
from mulan_nodes.mulan.conditioning.internvl_llama import InternVLEncoder
from mulan_nodes.mulan.conditioning.text_config import TextConfig
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.visionllm_nodes.model import perception, visionllm_loader

WINDOWS = [[1, 5, 9, 2, 0, 0], [1, 7, 2, 0, 0, 0]]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = InternVLEncoder(TextConfig(64, 128, 256, 2, 4, 1e-6), dtype=torch.float32)
    for parameter in encoder.parameters():
        parameter.data.normal_(0, 0.2)
    return encoder


def computed(encoder, dtype: torch.dtype, monkeypatch) -> tuple[torch.Tensor, list[torch.dtype]]:
    """The states, and the dtypes of what went into the first layer, pass by pass."""
    monkeypatch.setattr(internvl_llama, "compute_dtype", lambda device: dtype)
    seen = []
    layer = encoder.transformer.model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, __, named: seen.append(named["x"].dtype), with_kwargs=True)
    with torch.no_grad():
        states = torch.stack(encoder.hidden_states(WINDOWS))
    hook.remove()
    return states, seen


def test_the_text_encoder_computes_in_half_where_the_device_is_fast_with_it(encoder, monkeypatch):
    whole, seen = computed(encoder, torch.float32, monkeypatch)
    half, seen_half = computed(encoder, torch.float16, monkeypatch)
    assert seen == [torch.float32] and seen_half == [torch.float16]
    assert 0 < (half - whole).norm() / whole.norm() < 0.01


def test_what_overflows_in_half_is_computed_again(encoder, monkeypatch):
    encoder.transformer.model.layers[0].mlp.down_proj.weight.data *= 1e6
    whole, _ = computed(encoder, torch.float32, monkeypatch)
    again, seen = computed(encoder, torch.float16, monkeypatch)
    assert seen == [torch.float16, torch.float32] and torch.equal(again, whole)


@pytest.mark.parametrize(
    "asked, language, decoder",
    [(None, torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16, torch.bfloat16)],
    ids=["default", "bf16"],
)
def test_decoders_compute_in_float32_unless_somebody_chose(asked, language, decoder, tmp_path, monkeypatch):
    folder = random_visionllm.checkpoint(tmp_path / "model")
    monkeypatch.setattr(visionllm_loader, "choose_dtype", lambda device, *preferred: preferred[0])
    loaded = visionllm_loader.load_visionllm(folder, "cpu", asked)
    seen = {}
    for name in ("language", "grounding"):
        module = getattr(loaded.model, name)
        module.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0].dtype}))
    with torch.inference_mode():
        perception.detect(loaded, np.full((64, 64, 3), 90, np.uint8), ["star"], max_detections=3)
    assert seen == {"language": language, "grounding": decoder}
