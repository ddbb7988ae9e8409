"""The CLIP in one process: dtypes, quantised weights, training states, the host's contract."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mulan.clip import TextStates, load_clip, negative_view
from mulan.families import SD15
from mulan.files import WrongFile, open_adapter, open_text_encoder

GOLDENS = Path(__file__).resolve().parents[1] / "parity" / "goldens" / "mulan"
ADAPTER = GOLDENS / "weights" / "sd15_tiny.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "InternVL-tiny"
    shutil.copytree(GOLDENS / "text_encoder", folder)
    shutil.copy(GOLDENS / "tokenizer" / "tokenizer.model", folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(folder, ADAPTER, family=SD15)


def one_file(folder: Path, path: Path, change) -> Path:
    """The folder's encoder as one .safetensors of our own layout; `change` maps (name, tensor) to more tensors."""
    source = open_text_encoder(folder)
    weights = {"spiece_model": torch.frombuffer(bytearray(source.tokenizer()), dtype=torch.uint8)}
    for name, tensor in source.state_dict().items():
        weights |= change(name, tensor)
    config = json.dumps({"num_attention_heads": source.config.heads, "rms_norm_eps": source.config.norm_eps})
    save_file(weights, path, metadata={"config": config})
    return path


def marked(quantisation: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps({"format": quantisation}).encode()), dtype=torch.uint8)


def int8(name, tensor):
    if not name.endswith("_proj.weight"):
        return {name: tensor}
    layer, scale = name[:-len(".weight")], tensor.abs().amax(dim=1, keepdim=True) / 127
    return {name: (tensor / scale).round().to(torch.int8), f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": marked("int8_tensorwise")}


def fp8(name, tensor):
    if not name.endswith("_proj.weight"):
        return {name: tensor}
    layer, scale = name[:-len(".weight")], tensor.abs().amax() / 448
    return {name: (tensor / scale).to(torch.float8_e4m3fn), f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": marked("float8_e4m3fn")}


@pytest.mark.parametrize("form, tolerance", [
    (lambda name, tensor: {name: tensor}, 1e-6), (lambda name, tensor: {name: tensor.half()}, 0.01), (int8, 0.05), (fp8, 0.15),
], ids=("float32", "float16", "int8", "fp8"))
def test_half_and_quantised_encoders_stay_close_and_small(form, tolerance, folder, clip, tmp_path):
    loaded = load_clip(one_file(folder, tmp_path / "encoder.safetensors", form), ADAPTER, family=SD15)
    wanted, ours = clip.encode("a photo of a cat"), loaded.encode("a photo of a cat")
    assert (ours - wanted).norm() / wanted.norm() < tolerance
    stored = form("model.layers.0.self_attn.q_proj.weight", torch.ones(4, 4))["model.layers.0.self_attn.q_proj.weight"].dtype
    weight = loaded.cond_stage_model.internvl.transformer.model.layers[0].self_attn.q_proj.weight
    assert weight.element_size() == stored.itemsize or getattr(weight, "_qdata", weight).element_size() == stored.itemsize


def test_the_adapter_keeps_its_own_dtype(folder, tmp_path):
    half = one_file(folder, tmp_path / "half.safetensors", lambda name, tensor: {name: tensor.half()})
    encoder = load_clip(half, ADAPTER, family=SD15).cond_stage_model.internvl
    assert encoder.adapter.queries.dtype == torch.float32 and encoder.transformer.model.norm.weight.dtype == torch.float16


def test_training_states_are_what_the_adapter_reads(folder):
    cases = json.loads((GOLDENS / "cases_sd15.json").read_text("utf-8"))
    kept = load_file(GOLDENS / "sd15.safetensors")
    texts = load_file(GOLDENS / "text.safetensors")
    captions = [next(e["prompt"] for e in cases["positives"] if e["id"] == id) for id in ("p07", "p09")]
    states = TextStates(folder)([captions[0], "", captions[1]])
    assert torch.allclose(states[0], kept["p07.prompt_embeds"], atol=2e-5)
    assert torch.allclose(states[2], kept["p09.prompt_embeds"], atol=2e-5)
    assert torch.allclose(states[1], texts["n00.text80"][:77], atol=2e-5)


def test_the_negative_view_shares_the_weights_and_leaves_the_clip_alone(clip):
    view = negative_view(clip)
    assert view.patcher.is_clone(clip.patcher) and clip.tokenizer_options == {}
    assert len(view.tokenize("x")["l"][0]) == 77 and len(clip.tokenize("x")["l"][0]) == 80


def test_every_lora_name_has_one_common_prefix(clip):
    assert {name.split(".")[0] for name in clip.cond_stage_model.state_dict()} == {"internvl"}


def test_the_patcher_can_be_built_anew(clip):
    """Hooks on dynamic memory and a second device need it."""
    build, arguments = clip.patcher.cached_patcher_init
    assert build(*arguments, disable_dynamic=True).model.state_dict().keys() == clip.cond_stage_model.state_dict().keys()


def test_a_folder_without_a_shard_or_tokenizer_is_named(folder, tmp_path):
    cut = tmp_path / "Cut"
    cut.mkdir()
    (cut / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(WrongFile, match="Cut .*lacks 1 of its shards.*model-00001-of-00002.safetensors"):
        open_text_encoder(cut)
    bare = tmp_path / "Bare"
    shutil.copytree(folder, bare)
    (bare / "tokenizer.model").unlink()
    with pytest.raises(WrongFile, match="without its sentencepiece model.*tokenizer.model"):
        open_text_encoder(bare)


def test_an_incomplete_encoder_is_named(folder, tmp_path):
    path = one_file(folder, tmp_path / "holes.safetensors", lambda name, tensor: {} if "layers.1.mlp" in name else {name: tensor})
    with pytest.raises(WrongFile, match="incomplete: 3 tensors are missing, the first is model.layers.1.mlp.down_proj.weight"):
        open_text_encoder(path)


def test_an_adapter_of_unknown_width_is_refused():
    with pytest.raises(WrongFile, match=r"contexts of width 32; known are 768 \(Stable Diffusion 1.5\), 1024"):
        open_adapter(ADAPTER)
