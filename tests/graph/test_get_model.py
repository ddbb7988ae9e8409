"""MuLan Get Model in a running ComfyUI, against a stand-in of the hub."""

from __future__ import annotations

import time

import pytest

from mulan_nodes.tests import hub_standin
from mulan_nodes.tools.comfy_server import MODEL_FOLDERS, ComfyServer, GraphFailed
from mulan_nodes.tools.random_checkpoints import internvl_chat

GRAPH = {"1": {"class_type": "MuLanGetModel", "inputs": {"model": "InternVL3-1B", "format": "int8"}}}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with hub_standin.running() as running:
        running.add("OpenGVLab/InternVL3-1B", internvl_chat.checkpoint(tmp_path_factory.mktemp("hub") / "InternVL3-1B"))
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
    assert failure.value.exception == "interrupted" and time.monotonic() - stopped < 1.5
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
