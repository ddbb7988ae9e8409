"""Files that version 0.4 converted still load, and give what version 0.4 computed from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError
from mulan_nodes.mulan.conditioning.model_files import open_text_encoder
from mulan_nodes.mulan.conversion.encoder_error import hidden_states
from mulan_nodes.mulan.internvl.internvl_loader import load_internvl
from mulan_nodes.mulan.internvl_chat.chat_files import open_chat
from mulan_nodes.mulan.internvl_chat.chat_loader import load_chat
from mulan_nodes.tests.unit import written_by_0_4
from mulan_nodes.tools.random_checkpoints import internvl_chat as random_chat
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.visionllm_nodes.model.visionllm import Prompt
from mulan_nodes.visionllm_nodes.model.visionllm_files import open_visionllm, unused_tensors
from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "tests" / "parity" / "goldens" / "mulan" / "tokenizer" / "tokenizer.model"

# `written_by_0_4.digest` of what version 0.4 computed from these files
EXPECTED = {
    "text encoder": [2.5296, 1.3453, -0.1065, -1.0003, -0.8188, -0.3246, 7.9027],
    "text encoder fp8": [1.3189, -0.7812, 1.2731, -2.403, -0.4341, 0.1933, 7.9112],
    "C": [-0.067, -0.0674, 0.3572, -0.4854, -0.2509, -0.2232, 1.0],
    "G": [-0.2422, -0.1856, 0.248, -0.4531, -0.2356, 0.0888, 1.0],
    "chat": [-0.7236, 1.58, -0.2911, -0.3372, 0.0992, 0.2941, 14.8322],
    "visionllm": [-0.9462, -2.0565, -1.8351, -1.0272, -1.8112, 0.2103, 7.2469],
}


def close(found: torch.Tensor, name: str):
    numbers = written_by_0_4.digest(found)
    return numbers == pytest.approx(EXPECTED[name], abs=0.01 * EXPECTED[name][-1]), numbers


def text_encoder(folder: Path, name: str = "text encoder") -> Path:
    return written_by_0_4.write(name, folder / f"{name}.safetensors", {"spiece_model": TOKENIZER.read_bytes()})


@pytest.mark.parametrize("name", ["text encoder", "text encoder fp8"])
def test_text_encoder(name, tmp_path):
    opened = open_text_encoder(text_encoder(tmp_path, name))
    assert (opened.config.num_hidden_layers, opened.config.num_attention_heads, opened.projection_dim) == (3, 4, 24)
    assert opened.tokenizer() == TOKENIZER.read_bytes()
    same, numbers = close(hidden_states(opened, [[1, 50, 60, 70, 2] + [0] * 75])[0], name)
    assert same, numbers


@pytest.mark.parametrize("mode", ["C", "G"])
def test_vision_side(mode, tmp_path):
    vision = written_by_0_4.write("vision side", tmp_path / "vision.safetensors", {})
    pair = load_internvl(vision, mode, text_encoder=text_encoder(tmp_path))
    image = torch.rand(1, 20, 24, 3, generator=torch.Generator().manual_seed(1))
    same, numbers = close(pair.embed_images(list(image)), mode)
    assert same and pair.logit_scale == pytest.approx(0.91933, abs=1e-4), numbers


def test_chat(tmp_path):
    random_chat.write_qwen_tokenizer(tmp_path, as_json=False)
    names = ("added_tokens.json", "merges.txt", "tokenizer_config.json", "vocab.json")
    files = {name: (tmp_path / name).read_bytes() for name in names}
    (tmp_path / "alone").mkdir()
    path = written_by_0_4.write("chat", tmp_path / "alone" / "chat.safetensors", files)
    assert open_chat(path).is_quantized and open_chat(path).tokenizer().vocab_size
    chat = load_chat(path).cond_stage_model.chat
    tile = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embeds = chat.embed([5, 9, chat.encode_tiles(tile).flatten(0, 1), 300], dtype=torch.float32)
        logits = chat.language_model.logits(chat.language_model.model(None, embeds=embeds)[0])
    same, numbers = close(logits, "chat")
    assert same, numbers


def test_visionllm(tmp_path):
    tokenizer = {"spiece_model": random_visionllm.sentencepiece_model(random_visionllm.PIECES)}
    path = written_by_0_4.write("visionllm", tmp_path / "visionllm.safetensors", tokenizer)
    opened = open_visionllm(path)
    assert {"tower", "bridge", "language", "super_link", "region_encoder", "grounding", "pose"} <= opened.parts.keys()
    assert unused_tensors(opened) == []
    loaded = load_visionllm(path, device="cpu")
    model, ids = loaded.load(), loaded.token_ids
    with torch.no_grad():
        features = model.encode_images(torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0)))
        image = [ids["<im_patch>"]] * len(features.tokens)
        prompt = Prompt([1, *image, *range(262, 280), ids["[DET]"], ids["[EMB]"]], [features.tokens])
        states = torch.stack(model.prefill([prompt], ids["<im_patch>"], ids["<region>"])[0])
    same, numbers = close(states, "visionllm")
    assert same, numbers


def test_a_lost_tensor_or_another_scale_would_show(tmp_path, monkeypatch):
    """The numbers above are sharp: half a scale is far outside their tolerance, and no name may be missing."""
    whole = written_by_0_4.random
    monkeypatch.setattr(
        written_by_0_4,
        "random",
        lambda key, *rest: whole(key, *rest) * (0.5 if key == "model.layers.1.mlp.up_proj.weight_scale" else 1),
    )
    states = hidden_states(open_text_encoder(text_encoder(tmp_path)), [[1, 50, 60, 70, 2] + [0] * 75])[0]
    assert not close(states, "text encoder")[0]
    tensors = written_by_0_4.FILES["text encoder"]["tensors"]
    monkeypatch.delitem(tensors, "model.layers.1.mlp.up_proj.weight")
    monkeypatch.delitem(tensors, "model.layers.1.mlp.up_proj.comfy_quant")
    with pytest.raises(WrongFileError, match="incomplete: 1 tensors are missing, the first is model.layers.1.mlp.up_p"):
        open_text_encoder(text_encoder(tmp_path))
