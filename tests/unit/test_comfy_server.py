"""The server of the tests when it does not start, and the small changes to graphs."""

import pytest

from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import ROOT, ComfyServer, ServerError


@pytest.fixture
def comfyui(tmp_path):
    """comfyui(code) -> a folder that looks like ComfyUI and whose main.py is `code`."""
    (tmp_path / "custom_nodes").mkdir()

    def make(code: str):
        (tmp_path / "main.py").write_text(code)
        (tmp_path / "custom_nodes" / "pack").symlink_to(ROOT, target_is_directory=True)
        return tmp_path

    return make


def test_a_server_that_ends_at_once_shows_its_last_words(comfyui):
    with pytest.raises(ServerError, match=r"ended with code 3 while starting(.|\n)*no such module"):
        ComfyServer(comfyui("import sys; print('no such module'); sys.exit(3)")).start()


def test_a_server_that_never_answers_is_ended(comfyui):
    server = ComfyServer(comfyui("import time; print('busy', flush=True); time.sleep(60)"), start_within=1.5)
    with pytest.raises(ServerError, match=r"did not answer on .* within 2 s(.|\n)*busy"):
        server.start()
    assert not server.folder.exists()
    with pytest.raises(ServerError, match="not running"):
        _ = server.process


def test_a_comfyui_without_the_pack_says_what_to_do(tmp_path):
    (tmp_path / "custom_nodes").mkdir()
    server = ComfyServer(tmp_path)
    with pytest.raises(ServerError, match="python dev.py setup"):
        server.start()
    assert not server.folder.exists()


def test_nodes_are_found_by_title_and_by_class():
    graph = graphs.load("mulan_text_to_image")
    assert graph[graphs.find(graph, "Prompt")]["class_type"] == "CLIPTextEncode"
    assert graph[graphs.find(graph, "KSampler")]["class_type"] == "KSampler"
    with pytest.raises(KeyError, match="2 nodes are titled or of class 'CLIPTextEncode'"):
        graphs.find(graph, "CLIPTextEncode")


def test_a_change_leaves_the_graph_that_was_loaded_alone():
    graph = graphs.load("mulan_text_to_image")
    changed = graphs.change(graph, "Prompt", text="a red star")
    assert changed[graphs.find(changed, "Prompt")]["inputs"]["text"] == "a red star"
    assert graph == graphs.load("mulan_text_to_image") != changed


def test_without_mulan_the_checkpoint_takes_its_place():
    graph = graphs.without_mulan(graphs.load("mulan_text_to_image"))
    checkpoint = graphs.find(graph, "CheckpointLoaderSimple")
    assert graph[graphs.find(graph, "Prompt")]["inputs"]["clip"] == [checkpoint, 1]
    assert graph[graphs.find(graph, "Negative prompt")]["inputs"]["clip"] == [checkpoint, 1]
    assert graph[graphs.find(graph, "KSampler")]["inputs"]["model"] == [checkpoint, 0]
    links = [value[0] for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert set(links) <= set(graph)
