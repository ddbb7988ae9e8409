"""Every template: it fits the nodes the server has, says nothing twice, and draws with tiny models under real names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mulan_nodes.mulan import VERSION
from mulan_nodes.tools import comfyui, graphs
from mulan_nodes.tools.api_form import NOTES, as_api, declared_inputs
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.tools.shards import shard

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.json"))
SAVING = "11 Save a prompt"
ANY = "*"
LARGEST = 110_000  # bytes of an image
WITH_MAPPERS = "VisionLLMv2"  # a random one: the tiny one has no mappers to Stable Diffusion, and 5 keypoints
INSTEAD = {  # of the files that a template names, in drawing: template -> node -> inputs
    "04 Set up MuLan for PixArt": {
        "MuLan Loader": {"text_encoder": "random_wide.safetensors", "adapter": "pixart.pth"}
    },
    "16 Keypoints to ControlNet": {
        "VisionLLM Loader": {"checkpoint": WITH_MAPPERS},
        "VisionLLM Pose": {"threshold": 0.0},
    },
    "21 Edit and generate with VisionLLM": {"VisionLLM Loader": {"checkpoint": WITH_MAPPERS}},
    # the tiny model knows shapes, and no person
    "22 Work with boxes and detections": {
        "VisionLLMDetect": {"threshold": 0.0, "top_k": 4},
        "VisionLLMFilterBoxes": {"names": "", "min_score": 0.0},
    },
}


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def choices(kind, options) -> list | None:
    return kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None


@pytest.fixture(scope="module", autouse=True)
def visionllm_with_mappers(models):
    if not (folder := models / "visionllm" / WITH_MAPPERS).exists():
        shard(random_visionllm.checkpoint(folder, mappers=True))


@pytest.fixture(scope="module", autouse=True)
def example_images(server, comfyui_folder):
    comfyui.write_example_images(server.folder / "input")
    with Image.open(comfyui_folder / "input" / "example.png") as image:  # every ComfyUI has it
        image.resize((128, 128)).save(server.folder / "input" / "example.png")


@pytest.fixture(scope="module", autouse=True)
def saved_conditionings(server, visionllm_with_mappers):
    """Templates and graphs that load a prompt choose among the files that others write."""
    server.run(small(SAVING, server))
    server.run(graphs.load("mulan_save_conditioning"))


def small(name: str, server) -> dict:
    """A template's graph on the models of the tests, smaller and in one step."""
    graph = as_api(read(FOLDER / f"{name}.json"), server.object_info)
    for node, inputs in INSTEAD.get(name, {}).items():
        graph = graphs.change(graph, node, **inputs)
    for node in graph.values():
        if node["class_type"] == "EmptyLatentImage":
            side = 384 if "PixArt" in name else 128  # below 384 ComfyUI fails on PixArt's positions
            node["inputs"] |= {key: min(side, node["inputs"][key]) for key in ("width", "height")}
        if node["class_type"] == "ConditioningSetArea":
            node["inputs"] |= {"width": 64, "height": 64, "x": 0, "y": 0}
        if node["inputs"].get("points"):
            node["inputs"] |= {"points": '[{"x": 60, "y": 60}]'}
        if node["class_type"] == "PrimitiveBoundingBox":
            node["inputs"] |= {"width": 64, "height": 64, "x": 16, "y": 16}
        node["inputs"] |= {"steps": 1} if "steps" in node["inputs"] else {}
    return graph


def test_the_templates_are_numbered():
    assert [int(name[:2]) for name in TEMPLATES] == list(range(1, len(TEMPLATES) + 1))
    assert all(re.fullmatch(r"\d\d [A-Z][\w ,.-]+", name) for name in TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_both_formats_say_the_same(name, server):
    """If not, write them anew: python dev.py templates --api"""
    assert as_api(read(FOLDER / f"{name}.json"), server.object_info) == read(FOLDER / "api" / f"{name}.json")


def test_there_is_no_other_api_form():
    assert sorted(path.stem for path in (FOLDER / "api").iterdir()) == TEMPLATES


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_input_fits_its_node(name, server):
    graph = as_api(read(FOLDER / f"{name}.json"), server.object_info)
    for id, node in graph.items():
        info = server.object_info(node["class_type"])
        declared = declared_inputs(info, node["inputs"])
        assert set(node["inputs"]) <= set(declared), f"node {id}"
        assert set(info["input_order"].get("required", [])) <= {name.split(".")[0] for name in node["inputs"]}, (
            f"node {id}"
        )
        for input_name, value in node["inputs"].items():
            kind, options = declared[input_name]
            if isinstance(value, list):
                assert kind in (ANY, server.object_info(graph[value[0]]["class_type"])["output"][value[1]])
            elif choices(kind, options) is not None:
                assert value in choices(kind, options), f"{node['class_type']}.{input_name}: {value!r}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_links_and_sockets_of_the_editor_agree(name):
    """A socket that does not know its link, or the reverse, makes the editor repair the graph with a warning."""
    workflow = read(FOLDER / f"{name}.json")
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for id, source, output, target, socket, kind in workflow["links"]:
        assert id in nodes[source]["outputs"][output]["links"] and nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][socket]["link"] == id and nodes[target]["inputs"][socket]["type"] in (kind, ANY)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    assert workflow["last_node_id"] == max(nodes)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_editor_knows_whose_nodes_they_are_and_where_models_come_from(name, server):
    for node in read(FOLDER / f"{name}.json")["nodes"]:
        if node["type"] in NOTES:
            continue
        ours = server.object_info(node["type"])["category"].startswith("MuLan Nodes")
        assert node["properties"]["cnr_id"] == ("mulan-nodes" if ours else "comfy-core")
        assert not ours or node["properties"]["ver"] == VERSION
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"] and model["directory"]
            assert re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/[\w./-]+", model["url"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_notes_are_few_and_short_and_name_templates_that_exist(name):
    notes = [node["widgets_values"][0] for node in read(FOLDER / f"{name}.json")["nodes"] if node["type"] in NOTES]
    assert 1 <= len(notes) <= 2 and all(len(note) <= 400 for note in notes)
    assert set(re.findall(r"\*\*(\d\d [^*]+)\*\*", "".join(notes))) <= set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_server_offers_the_template_with_its_image(name, server):
    (pack,) = [pack for pack, offered in json.loads(server.get("/workflow_templates")).items() if name in offered]
    path = f"/api/workflow_templates/{pack}/{name.replace(' ', '%20')}"
    assert json.loads(server.get(f"{path}.json"))["nodes"]
    image = server.get(f"{path}.jpg")
    assert image[:2] == b"\xff\xd8" and len(image) < LARGEST


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_draws(name, server):
    outputs = server.run(small(name, server))
    assert outputs.images or outputs.nodes
    assert all(image.std() > 0 for image in outputs.images)


@pytest.mark.parametrize("path", sorted(graphs.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_graphs_of_tests_draw(path, server):
    """Stock nodes of every kind around MuLan's CLIP, on the tiny models."""
    outputs = server.run(read(path))
    assert outputs.images or outputs.nodes
    assert all(image.std() > 0 for image in outputs.images)
