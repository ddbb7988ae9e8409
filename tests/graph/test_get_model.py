"""MuLan Get Model in a running ComfyUI, against a stand-in of the hub."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
import torch
import websocket
from safetensors.torch import load_file, save_file

from mulan_nodes.tests import hub_standin
from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import MODEL_FOLDERS, ComfyServer, GraphFailed, GraphRejected
from mulan_nodes.tools.evaluate import mulan as evaluate_mulan
from mulan_nodes.tools.evaluate.cases import MULAN, TinyWorldReader, tiny_world_cases, tiny_world_draws
from mulan_nodes.tools.random_checkpoints import internvl, internvl_chat

GRAPH = {"1": {"class_type": "MuLanGetModel", "inputs": {"model": "InternVL3-1B", "format": "int8"}}}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(published, tiny_models, comfyui_folder):
    adapters = published / "mulan-lang-adapter"
    adapters.mkdir()
    adapter = comfyui_folder / "models" / "mulan" / "tiny_sd15_adapter.safetensors"
    torch.save(load_file(adapter), adapters / "sd15_aesthetic.pth")
    with hub_standin.running() as running:
        running.add("OpenGVLab/InternVL3-1B", internvl_chat.checkpoint(published / "InternVL3-1B"))
        running.add(
            "OpenGVLab/InternVL-14B-224px",
            internvl.checkpoint(published / "InternVL-14B-224px", shards="bin", text_width=128),
        )
        running.add("mulanai/mulan-lang-adapter", adapters)
        yield running


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in MODEL_FOLDERS:
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def server(comfyui_folder, models, hub, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        with ComfyServer(comfyui_folder, extra_models=models) as running:
            yield running


def test_a_run_that_is_stopped_goes_on_with_the_next_one_and_the_loader_lists_the_file(server, hub, models):
    assert not hub.requests, "nothing is asked before a person presses Run"
    made = models / "internvl_chat" / "InternVL3-1B_int8.safetensors"
    part = made.with_name(f"{made.name}.part")
    hub.speed, begun = 60000, time.monotonic()

    posted = server.post(GRAPH)
    while not part.is_file():
        time.sleep(0.05)
        assert time.monotonic() - begun < 60
    time.sleep(1)
    stopped = time.monotonic()
    server.interrupt()
    with pytest.raises(GraphFailed) as failure:
        server.wait(posted)
    assert failure.value.exception == "interrupted" and time.monotonic() - stopped < 5  # unheard: 40
    assert not made.exists() and part.is_file()
    assert made.name not in str(server.object_info("InternVLChatLoader"))

    hub.speed = 0
    outputs = server.run(GRAPH)
    assert made.is_file() and not part.exists()
    assert str(made) in outputs.nodes["1"]["text"][0]
    assert made.name in str(server.object_info("InternVLChatLoader"))

    asked = len(hub.requests)
    server.run(GRAPH)
    assert len(hub.requests) == asked, "what is there is not asked for again"
    made.unlink()
    server.run(GRAPH)
    assert made.is_file(), "what was deleted comes again"


def test_what_cannot_be_had_is_an_error_of_the_node(server, hub):
    with pytest.raises(GraphFailed, match="has no repository OpenGVLab/InternVL3-2B") as failure:
        server.run({"1": {"class_type": "MuLanGetModel", "inputs": {"model": "InternVL3-2B", "format": "fp8"}}})
    assert failure.value.node_class == "MuLanGetModel"


def get_model(model: str = "InternVL3-1B", **inputs) -> dict:
    return {"class_type": "MuLanGetModel", "inputs": {"model": model, "format": "int8", **inputs}}


def test_one_run_downloads_text_encoder_and_adapter_and_draws(server, hub, models, comfyui_folder):
    """The file's name goes by a link into the loader's lists, also that of a file in a subfolder."""
    encoder = comfyui_folder / "models" / "text_encoders" / "InternVL-14B-224px_text_int8.safetensors"
    adapter = models / "mulan" / "sd15_aesthetic.safetensors"
    drawing = graphs.load("mulan_text_to_image")
    linked = graphs.change(drawing, "MuLan Loader", text_encoder=["20", 0], adapter=["21", 0])
    linked |= {"20": get_model("MuLan text encoder"), "21": get_model("MuLan adapter sd15_aesthetic")}
    try:
        drawn = server.run(linked).images[0]
        assert encoder.is_file() and adapter.is_file()
        chosen = graphs.change(drawing, "MuLan Loader", text_encoder=encoder.name, adapter=adapter.name)
        assert np.array_equal(drawn, server.run(chosen).images[0])

        asked = len(hub.requests)
        (adapter.parent / "mine").mkdir()
        adapter.rename(adapter.parent / "mine" / adapter.name)
        linked = graphs.change(linked, "KSampler", seed=2)
        chosen = graphs.change(chosen, "MuLan Loader", adapter=f"mine/{adapter.name}")
        again = server.run(linked).images[0]
        assert np.array_equal(again, server.run(graphs.change(chosen, "KSampler", seed=2)).images[0])
        assert len(hub.requests) == asked and not adapter.exists()
    finally:
        encoder.unlink(missing_ok=True)


def test_a_text_encoder_in_4_bits_draws_what_was_asked_for(server, comfyui_folder):
    """Converted, loaded and used in one run, in six languages; as right as the encoder it was made of."""
    folder = comfyui_folder / "models" / "text_encoders"
    made, source = folder / "tiny_internvl_text_int4.safetensors", folder / "tiny_internvl.safetensors"
    drawing = graphs.load("mulan_text_to_image")
    linked = graphs.change(drawing, "MuLan Loader", text_encoder=["20", 0])
    linked |= {"20": get_model("MuLan text encoder", format="int4", source=str(source))}
    draws = tiny_world_draws(2, seed=7)
    cases = [
        case for language in ("en", "zh", "ru", "de", "ar", "hi") for case in tiny_world_cases(MULAN, language, draws)
    ]
    try:
        right = {
            name: [
                result.scores["right"] for result in evaluate_mulan.draw_all(server, cases, TinyWorldReader(), graph)
            ]
            for name, graph in (("source", drawing), ("4 bits", linked))
        }
        assert made.stat().st_size < 0.45 * source.stat().st_size
        assert sum(right["4 bits"]) >= sum(right["source"]) - 1 and sum(right["4 bits"]) >= 0.7 * len(cases), right
    finally:
        made.unlink(missing_ok=True)


def test_what_is_here_is_converted_and_the_editor_that_asked_is_told(server, models, published):
    made = models / "internvl_chat" / "InternVL3-1B_fp16.safetensors"
    graph = {"1": get_model(format="fp16", source=str(published / "InternVL3-1B"))}
    asking, other = (websocket.create_connection(f"ws://{server.address}/ws?clientId={id}") for id in ("a", "b"))
    try:
        server.ask("/prompt", {"prompt": graph, "client_id": "a"})
        asking.settimeout(120)
        told = []
        while "execution_success" not in told:
            message = asking.recv()
            told += [json.loads(message)["type"]] if isinstance(message, str) else []
        assert "mulan_nodes.files" in told and made.is_file()
        other.settimeout(1)
        with pytest.raises(websocket.WebSocketTimeoutException):
            while True:
                assert "mulan_nodes.files" not in str(other.recv())
    finally:
        asking.close()
        other.close()


def test_a_source_with_nan_is_named(server, published, tmp_path):
    damaged = tmp_path / "InternVL3-nan"
    shutil.copytree(published / "InternVL3-1B", damaged)
    (file,) = damaged.glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("mlp.down_proj.weight"))
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, file)
    with pytest.raises(GraphFailed, match=r"InternVL3-nan \(in .*\) is damaged: .*NaN.*Download it again"):
        server.run({"1": get_model(format="fp16", source=str(damaged))})


def test_a_source_that_is_nothing_is_refused_before_the_run(server, hub, tmp_path):
    asked = len(hub.requests)
    with pytest.raises(GraphRejected, match="source: .*nowhere.* is neither a file or folder here nor a repository"):
        server.run({"1": get_model(source=str(tmp_path / "nowhere"))})
    assert len(hub.requests) == asked


def test_the_folders_of_the_pack_s_models_are_there(server, comfyui_folder):
    for name in ("mulan", "visionllm", "internvl", "internvl_chat"):
        assert (comfyui_folder / "models" / name).is_dir()
