"""Weights with NaN or infinity: whatever is asked, an error names the file and the tensor."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints.finite import first_not_finite
from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.visionllm_nodes.model import answers, contexts, perception, prompt_templates, tool_use
from mulan_nodes.visionllm_nodes.model.selection import Limits
from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

IMAGE = torch.rand(90, 130, 3, generator=torch.Generator().manual_seed(0))
QUESTIONS = {
    "detect": lambda loaded: perception.detect(loaded, IMAGE, ["star"]),
    "ground": lambda loaded: perception.ground(loaded, IMAGE, "the star"),
    "segment": lambda loaded: perception.segment(loaded, IMAGE, ["star", "dog"]),
    "region": lambda loaded: perception.detect_at_regions(loaded, IMAGE, _region(loaded)),
    "similar": lambda loaded: perception.detect_similar(loaded, IMAGE, _region(loaded), Limits()),
    "pose": lambda loaded: perception.pose(loaded, IMAGE, ["star"], ["tip"]),
    "ask": lambda loaded: answers.answer(loaded, [IMAGE], [prompt_templates.chat("What?")], max_tokens=2),
    "instruct": lambda loaded: tool_use.instruct(loaded, IMAGE, "Find the star", max_tokens=2),
    "generate": lambda loaded: contexts.generation_context(loaded, "a star"),
    "edit": lambda loaded: contexts.editing_context(loaded, IMAGE, "a star"),
}


def _region(loaded):
    size = loaded.settings.tower
    return torch.zeros(1, size, size, dtype=torch.bool).index_fill(2, torch.arange(4, 20), True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return random_visionllm.checkpoint(tmp_path_factory.mktemp("models") / "VisionLLMv2", mappers=True)


def damaged(source, folder, name, value):
    """Copy a checkpoint with one number of one tensor replaced."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[tensors[name].numel() // 2] = value
    save_file(tensors, folder / "model.safetensors")
    for beside in ("config.json", "tokenizer.model"):
        (folder / beside).write_bytes((source / beside).read_bytes())
    return folder


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name", ["vis_encoder.vision_model.embeddings.class_embedding", "llm.model.norm.weight", "vl_bridge.0.bias"]
)
def test_a_damaged_language_model_is_refused_by_every_question(checkpoint, tmp_path, name, value):
    loaded = load_visionllm(damaged(checkpoint, tmp_path / "Broken", name, value))
    for question, ask in QUESTIONS.items():
        if question == "generate" and not name.startswith("llm."):
            continue  # it looks at no image
        with pytest.raises(ValueError, match=rf"Broken \(in .*not finite: its {name} contains NaN or infinity"):
            ask(loaded)


@pytest.mark.parametrize(
    "name",
    [
        "gdino.model.decoder.layers.0.encoder_attn.sampling_offsets.bias",
        "gdino.model.decoder.bbox_embed.0.layers.2.bias",
        "unipose.transformer.decoder.layers.0.cross_attn.sampling_offsets.weight",
        "emb_embeddings_det.weight",
        "sd.emb_proj.0.weight",
    ],
)
def test_a_damaged_decoder_does_not_load(checkpoint, tmp_path, name):
    for value in (math.nan, -math.inf):
        with pytest.raises(WrongFileError, match=f"its {name} contains NaN or infinity"):
            load_visionllm(damaged(checkpoint, tmp_path / str(value), name, value))


def test_numbers_that_overflow_name_the_precision(checkpoint, tmp_path):
    folder = damaged(checkpoint, tmp_path / "Large", "llm.model.norm.weight", 1e30)
    with pytest.raises(ValueError, match="overflow in float16. Choose another precision, such as fp32"):
        QUESTIONS["detect"](load_visionllm(folder, dtype=torch.float16))


def test_every_dtype_is_searched():
    tensors = {
        "int8": torch.zeros(3, dtype=torch.int8),
        "fp8": torch.tensor([1.0, math.nan]).to(torch.float8_e4m3fn),
        "fp16": torch.tensor([math.inf]).half(),
    }
    assert first_not_finite(tensors, tensors.__getitem__) == "fp8"
    assert first_not_finite(["fp16"], tensors.__getitem__) == "fp16"
    assert first_not_finite(["int8"], tensors.__getitem__) is None
