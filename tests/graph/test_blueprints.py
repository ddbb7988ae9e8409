"""Every subgraph blueprint: the server offers it, it fits its nodes, and it runs on tiny models under real names."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

from mulan_nodes.tools.api_form import as_api, declared_inputs

FOLDER = Path(__file__).resolve().parents[2] / "subgraphs"
BLUEPRINTS = sorted(path.stem for path in FOLDER.glob("*.json"))
INPUT, OUTPUT = -10, -20  # the ids of a subgraph's own ends


def inner(name: str) -> dict:
    """The subgraph as a workflow, its ends open."""
    (subgraph,) = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["definitions"]["subgraphs"]
    nodes, keys = copy.deepcopy(subgraph["nodes"]), ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    outer = {link["id"] for link in subgraph["links"] if link["origin_id"] == INPUT}
    for node in nodes:
        for given in node["inputs"]:
            given["link"] = None if given["link"] in outer else given["link"]
    links = [[link[key] for key in keys] for link in subgraph["links"]]
    return {"nodes": nodes, "links": [link for link in links if link[1] != INPUT and link[3] != OUTPUT]}


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_the_server_offers_the_blueprint(name, server):
    offered = [entry for entry in json.loads(server.get("/global_subgraphs")).values() if entry["name"] == name]
    assert [entry["source"] for entry in offered] == ["custom_node"]


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_its_ends_are_those_of_its_node(name):
    blueprint = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    (node,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"] and subgraph["name"] == name
    for side in ("inputs", "outputs"):
        assert [(end["name"], end["type"]) for end in node[side]] == [
            (end["name"], end["type"]) for end in subgraph[side]
        ]
    links = {link["id"]: link for link in subgraph["links"]}
    for position, end in enumerate(subgraph["inputs"]):
        assert all(links[id]["origin_id"] == INPUT and links[id]["origin_slot"] == position for id in end["linkIds"])
    for position, end in enumerate(subgraph["outputs"]):
        assert all(links[id]["target_id"] == OUTPUT and links[id]["target_slot"] == position for id in end["linkIds"])


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_the_blueprint_runs(name, server, comfyui_folder):
    shutil.copy(comfyui_folder / "input" / "example.png", server.folder / "input")
    graph = as_api(inner(name), server.object_info)
    outputs = {}
    for id, node in graph.items():
        info = server.object_info(node["class_type"])
        for needed, (kind, _) in declared_inputs(info, ["images.image_1"]).items():
            if kind == "IMAGE":
                node["inputs"][needed] = ["image", 0]
        outputs[f"shown {id}"] = {"class_type": "PreviewAny", "inputs": {"source": [id, len(info["output"]) - 1]}}
    image = {"image": {"class_type": "LoadImage", "inputs": {"image": "example.png"}}}
    assert server.run(graph | image | outputs).nodes
