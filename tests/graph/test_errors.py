"""Graphs that must fail, and how that reads."""
from __future__ import annotations

import pytest
import graphs
from comfy_server import GraphFailed, GraphRejected


@pytest.fixture(scope="module")
def base() -> dict:
    return graphs.load("mulan_text_to_image")


WRONG_FILES = {
    "wrong_clip_l": ({"text_encoder": "wrong_clip_l.safetensors"}, ["wrong_clip_l.safetensors", "a CLIP-L text encoder", "expected is InternVL's LLaMA"]),
    "wrong_t5": ({"text_encoder": "wrong_t5.safetensors"}, ["a T5 text encoder", "OpenGVLab/InternVL-14B-224px"]),
    "wrong_llama3": ({"text_encoder": "wrong_llama3.safetensors"}, ["another large language model", "models/text_encoders"]),
    "cut short": ({"text_encoder": "wrong_cut_short.safetensors"}, ["cannot be read as safetensors", "Download it again"]),
    "absent": ({"text_encoder": "gone.safetensors"}, ["'gone.safetensors' is not in", "text_encoders", "OpenGVLab/InternVL-14B-224px"]),
    "climbing": ({"text_encoder": "../../secret.safetensors"}, ["is not in"]),
    "sdxl": ({"adapter": "wrong_sdxl.safetensors"}, ["a MuLan adapter for SDXL", "expected is a MuLan adapter for SD1.5 or SD2.1"]),
    "pixart": ({"adapter": "wrong_pixart.pth"}, ["a MuLan adapter for PixArt"]),
    "lora": ({"adapter": "wrong_lora.safetensors"}, ["a LoRA (it belongs in models/loras)", "mulanai/mulan-lang-adapter"]),
    "code": ({"adapter": "wrong_code.pth"}, ["cannot be read as plain weights", "never code"]),
    "width": ({"adapter": "wrong_width.safetensors"}, ["reads states of width 4096", "InternVL-14B-224px"]),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_file_is_named_before_anything_runs(name, server, base):
    choice, words = WRONG_FILES[name]
    with pytest.raises(GraphRejected) as refusal:
        server.run(graphs.change(base, "MuLan Loader", **choice))
    errors = refusal.value.node_errors[graphs.find(base, "MuLanLoader")]["errors"]
    assert {error["type"] for error in errors} == {"custom_validation_failed"}
    for word in words:
        assert word in errors[0]["details"], errors[0]["details"]


def test_an_adapter_of_another_family_than_the_model(server, base):
    with pytest.raises(GraphFailed) as failure:
        server.run(graphs.change(base, "MuLan Loader", adapter="random_sd21.safetensors"))
    assert failure.value.node_class == "MuLanLoader"
    assert "random_sd21.safetensors is for Stable Diffusion 2.1 (contexts of width 1024)" in failure.value.message
    assert "SD15 (width 768)" in failure.value.message


def test_the_model_output_without_a_model(server, base):
    graph = graphs.change(base, "MuLan Loader")
    del graph["2"]["inputs"]["model"]
    with pytest.raises(GraphFailed) as failure:
        server.run(graph)
    assert "no MODEL goes in" in failure.value.message


def test_the_server_goes_on_after_failures(server, base):
    assert server.run(graphs.change(base, "KSampler", seed=99)).images
