"""Validation images of a training, drawn by a graph in a real ComfyUI."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mulan_nodes.mulan.conditioning.adapter import from_published
from mulan_nodes.mulan.conditioning.model_files import open_adapter
from mulan_nodes.mulan.servers.server_client import ServerClient
from mulan_nodes.mulan.tiny_models.unpacking import ADAPTER
from mulan_nodes.mulan.training.adapters import build_adapter
from mulan_nodes.mulan.training.graph_validation import SUBFOLDER, GraphValidation
from mulan_nodes.tools import graphs
from mulan_nodes.tools.evaluate import mulan as evaluate_mulan
from mulan_nodes.tools.tinyworld import world

PROMPTS = {"a big red circle": ("red", "circle"), "一个小的蓝色星形": ("blue", "star")}


@pytest.fixture
def adapters(comfyui_folder):
    folder = comfyui_folder / "models" / "mulan"
    yield folder
    shutil.rmtree(folder / SUBFOLDER, ignore_errors=True)


@pytest.fixture
def adapter(adapters):
    file = open_adapter(adapters / ADAPTER.name)
    adapter = build_adapter(file.shape)
    adapter.load_state_dict(from_published({name: file.file.read(stored) for name, stored in file.names.items()}))
    return adapter


@pytest.fixture
def workflow(tmp_path):
    path = tmp_path / "graph_api.json"
    path.write_text(json.dumps(graphs.load(evaluate_mulan.GRAPH)), "utf-8")
    return path


def read(path):
    with Image.open(path) as image:
        assert "prompt" in image.info  # opens in the editor as the graph that drew it
        return np.asarray(image.convert("RGB"))


def test_the_graph_draws_each_prompt_with_the_adapter_as_it_stands(
    server, adapters, workflow, adapter, tmp_path, capsys
):
    out = tmp_path / "run"
    validate = GraphValidation(workflow, server.url, adapters, tuple(PROMPTS), out)
    validate.metadata = {"text_encoder": "an encoder"}
    validate(500, adapter)
    written = open_adapter(adapters / SUBFOLDER / "run-000500.safetensors")
    assert written.file.metadata["text_encoder"] == "an encoder"
    for number, (colour, shape) in enumerate(PROMPTS.values(), 1):
        reading = world.read(read(out / f"validation-000500-{number}.png"))
        assert (reading.colour, reading.shape) == (colour, shape)
    assert [file.name for file in (adapters / SUBFOLDER).iterdir()] == ["run-000500.safetensors"]

    with torch.no_grad():
        for weight in adapter.parameters():
            weight.zero_()
    validate(1000, adapter)
    first, second = (read(out / f"validation-001000-{number}.png") for number in (1, 2))
    assert (first == second).all()  # nothing of the prompts comes through
    assert [file.name for file in (adapters / SUBFOLDER).iterdir()] == ["run-001000.safetensors"]
    assert "no validation images" not in capsys.readouterr().out


def test_without_prompts_the_graph_draws_its_own(server, adapters, workflow, adapter, tmp_path):
    out = tmp_path / "run"
    GraphValidation(workflow, server.url, adapters, (), out)(7, adapter)
    assert [file.name for file in out.iterdir()] == ["validation-000007-1.png"]


def test_a_graph_that_ends_without_images_or_is_forgotten_does_not_hold_the_training(
    server, adapters, workflow, adapter, tmp_path, capsys, monkeypatch
):
    validate = GraphValidation(workflow, server.url, adapters, ("red",), tmp_path / "run")

    async def no_post(*_):
        pass  # as if the queue had been cleared, or the server restarted

    monkeypatch.setattr(ServerClient, "post", no_post)
    validate(1, adapter)
    assert "no validation images of step 1" in (said := capsys.readouterr().out) and "does not know the graph" in said

    async def interrupted(*_):
        return {"status": {"status_str": "error", "messages": [["execution_interrupted", {}]]}, "outputs": {}}

    monkeypatch.setattr(ServerClient, "history", interrupted)
    validate(2, adapter)
    assert "no validation images of step 2: it was interrupted on the server" in capsys.readouterr().out


def test_what_cannot_be_drawn_is_said_before_the_training_or_does_not_end_it(
    server, adapters, workflow, adapter, tmp_path, capsys
):
    graph = json.loads(workflow.read_text("utf-8"))

    def refused(match, change=None, url=server.url, folder=adapters, prompts=("red",)):
        changed = json.loads(json.dumps(graph))
        if change:
            change(changed)
        workflow.write_text(json.dumps(changed), "utf-8")
        with pytest.raises(ValueError, match=match):
            GraphValidation(workflow, url, folder, prompts, tmp_path / "run")

    def without(*classes):
        return lambda changed: [changed.pop(key) for key, node in graph.items() if node["class_type"] in classes]

    refused("does not answer", url="http://127.0.0.1:9")
    refused("write an address", url="127.0.0.1:8188")
    refused("has no MuLan Loader", without("MuLanLoader"))
    refused("is no folder", folder=tmp_path / "nowhere")
    refused("--prompt has no place", without("CLIPTextEncode"))
    refused("saves no image", without("SaveImage", "PreviewImage"))
    refused("has no node NotThere", lambda changed: changed.update(x={"class_type": "NotThere", "inputs": {}}))

    workflow.write_text(json.dumps(graphs.change(graph, "KSampler", sampler_name="none such")), "utf-8")
    GraphValidation(workflow, server.url, adapters, ("red",), tmp_path / "run")(500, adapter)
    assert "no validation images of step 500" in (said := capsys.readouterr().out) and "none such" in said
