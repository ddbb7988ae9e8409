"""A dialogue model as one file: the same answers in 16 bits, near ones in 8, the tokenizer and the configuration
inside.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError
from mulan_nodes.mulan.conversion.converters import convert
from mulan_nodes.mulan.conversion.output_files import CannotWriteError
from mulan_nodes.mulan.internvl_chat.chat_files import open_chat, unexpected
from mulan_nodes.mulan.internvl_chat.chat_loader import load_chat
from mulan_nodes.mulan.internvl_chat.chat_prompts import KEY
from mulan_nodes.tools.random_checkpoints import internvl_chat as random_chat
from mulan_nodes.tools.shards import shard

MODELS = [
    ("qwen2", "opengvlab", False),
    ("qwen3", "hf", True),
    ("internlm2", "opengvlab", False),
    ("internlm2", "hf", False),
]
PICTURE = torch.rand((28, 60, 3), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=MODELS, ids=lambda model: f"{model[0]}-{model[1]}")
def folder(request, tmp_path) -> Path:
    language, layout, tied = request.param
    return random_chat.checkpoint(tmp_path / "InternVL", language, layout, tied)


def logits(clip) -> torch.Tensor:
    """Of the word after a prompt with an image."""
    entries, chat = (
        [entry for entry, _ in clip.tokenize("What is it?", images=[PICTURE])[KEY][0]],
        clip.cond_stage_model.chat,
    )
    with torch.no_grad():
        prompt = chat.embed(
            [chat.encode_tiles(entry["data"]).flatten(0, 1) if isinstance(entry, dict) else entry for entry in entries],
            dtype=torch.float32,
        )
        return chat.language_model.logits(chat.language_model.model(None, embeds=prompt)[0])[0, -1]


@pytest.mark.parametrize("format, most", [("fp16", 0.01), ("int8", 0.1), ("int4", 0.6), ("fp8", 0.4)])
def test_it_says_the_same_alone_in_another_folder(folder, tmp_path, format, most):
    made = convert(folder, tmp_path, format)
    assert (
        made.folder == "internvl_chat"
        and made.path.name == f"InternVL_{format}.safetensors"
        and made.size == made.path.stat().st_size
    )
    whole = load_chat(folder)
    expected, tokens = logits(whole), whole.tokenize("What is it?", images=[PICTURE])
    shutil.rmtree(folder)  # so that nothing beside the file helps
    opened = open_chat(made.path)
    assert unexpected(opened) == [] and opened.is_quantized == (format != "fp16")
    converted = load_chat(made.path)
    again = converted.tokenize("What is it?", images=[PICTURE])
    assert [entry for entry, _ in again[KEY][0] if isinstance(entry, int)] == [
        entry for entry, _ in tokens[KEY][0] if isinstance(entry, int)
    ]
    assert (logits(converted) - expected).abs().max() < most * expected.abs().max()
    answer = converted.generate(again, do_sample=False, max_length=5)
    assert len(answer) == 5 and isinstance(converted.decode(answer), str)


def test_only_the_language_model_s_matrices_are_in_8_bits(tmp_path):
    folder = random_chat.checkpoint(tmp_path / "InternVL")
    stored = load_file(convert(folder, tmp_path).path)
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.int8} == {
        "language_model.model.embed_tokens.weight",
        *(
            f"language_model.model.layers.{layer}.{part}_proj.weight"
            for layer in range(3)
            for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
        ),
    }
    assert (
        stored["language_model.lm_head.weight"].dtype
        == stored["vision_model.encoder.layers.0.attn.qkv.weight"].dtype
        == torch.float16
    )
    tied = random_chat.checkpoint(tmp_path / "tied" / "InternVL", "qwen3", "hf", tied=True)
    assert (
        load_file(convert(tied, tmp_path / "tied").path)["language_model.model.embed_tokens.weight"].dtype
        == torch.float16
    )


def test_bfloat16_stays_as_published(tmp_path):
    folder = random_chat.checkpoint(tmp_path / "InternVL")
    published = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(published, folder / "model.safetensors")
    stored = load_file(convert(folder, tmp_path, "fp16").path)
    assert all(
        stored[name].dtype == torch.bfloat16 and torch.equal(stored[name], tensor) for name, tensor in published.items()
    )


def test_tokenizer_and_metadata_are_inside(tmp_path):
    made = convert(shard(random_chat.checkpoint(tmp_path / "InternVL3-1B")), tmp_path)
    with safe_open(made.path, "pt") as file:
        assert {"vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"} <= set(file.keys())
        metadata = file.metadata()
    assert (
        metadata["quantization"] == "int8_tensorwise"
        and '"template": "internvl2_5"' in metadata["config"]
        and "InternVL3-1B" in metadata["source"]
    )


def test_refused_sources_and_targets(tmp_path):
    folder = random_chat.checkpoint(tmp_path / "InternVL")
    made = convert(folder, tmp_path)
    with pytest.raises(WrongFileError, match="InternVL_int8.safetensors .* already holds quantized weights"):
        convert(made.path, tmp_path)
    with pytest.raises(CannotWriteError, match="already exists"):
        convert(folder, tmp_path)
    (folder / "vocab.json").unlink()
    with pytest.raises(WrongFileError, match="has no tokenizer that can be used"):
        convert(folder, tmp_path, overwrite=True)
    assert made.path.is_file() and not list(tmp_path.glob("*.tmp"))
