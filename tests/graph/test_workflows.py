"""Every template: its two formats say the same, and what they say fits the nodes the server has."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from mulan_nodes.tools import comfyui, graphs
from mulan_nodes.tools.comfy_server import GraphFailed
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.tools.shards import shard

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR"}
NOTES = {"Note", "MarkdownNote"}
REFINER = "mulan_sdxl_refiner"
SAM3 = "visionllm_sam3"
PUBLISHED_VISIONLLM = "VisionLLMv2"
ANY = "*"


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def declared_inputs(info: dict, given: Iterable[str]) -> dict[str, tuple]:
    """name -> (type, options) in the order in which the editor keeps the widgets' values.

    A list of sockets that grows, such as masks, stands for those of it that are `given`: masks.mask0, masks.mask1,
    images.image_1. A choice that brings inputs of its own, such as sampling_mode, stands for the choice alone: no
    template makes one that does.
    """
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    order = info["input_order"].get("required", []) + info["input_order"].get("optional", [])
    declared = {}
    for name in order:
        kind, options = inputs[name][0], inputs[name][1] if len(inputs[name]) > 1 else {}
        if kind == "COMFY_AUTOGROW_V3":
            (one,) = options["template"]["input"]["required"].values()
            starts = tuple(
                f"{name}.{start}" for start in options["template"].get("names") or [options["template"]["prefix"]]
            )
            declared |= {grown: (one[0], {}) for grown in given if grown.startswith(starts)}
        elif kind == "COMFY_DYNAMICCOMBO_V3":
            declared[name] = "COMBO", {"options": [option["key"] for option in options["options"]]}
        else:
            declared[name] = kind, options
    return declared


def is_widget(kind, options: dict) -> bool:
    return (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput")


def choices(kind, options) -> list | None:
    return kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None


def as_api(workflow: dict, server) -> dict:
    """What the editor would queue for a workflow in UI format."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        info = server.object_info(node["type"])
        linked = {given["name"]: sources[given["link"]] for given in node["inputs"] if given["link"] is not None}
        values, inputs = list(node["widgets_values"]), {}
        for name, (kind, options) in declared_inputs(info, linked).items():
            if is_widget(kind, options):
                inputs[name] = values.pop(0)
                if options.get("control_after_generate"):
                    assert values.pop(0) == "fixed", f"{node['type']}.{name}: a template repeats its picture"
            if name in linked:
                inputs[name] = linked[name]
        assert not values, f"{node['type']} has {len(values)} widget values too many"
        graph[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title", info["display_name"])},
        }
    return graph


@pytest.fixture(scope="module", autouse=True)
def published_visionllm(models):
    """A random one under the published name, with the mappers that the tiny one has not."""
    if not (folder := models / "visionllm" / PUBLISHED_VISIONLLM).exists():
        shard(random_visionllm.checkpoint(folder, mappers=True))


@pytest.fixture(scope="module", autouse=True)
def example_pictures(server):
    comfyui.write_example_images(server.folder / "input")


@pytest.fixture(scope="module", autouse=True)
def saved_conditionings(server):
    """mulan_load_conditioning chooses among the files that mulan_save_conditioning writes."""
    server.run(graphs.load("mulan_save_conditioning"))


def test_there_are_templates():
    assert TEMPLATES


@pytest.mark.parametrize("name", TEMPLATES)
def test_both_formats_say_the_same(name, server):
    assert as_api(read(FOLDER / f"{name}.json"), server) == graphs.load(name)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_input_fits_its_node(name, server):
    graph = graphs.load(name)
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
def test_the_server_offers_the_template_with_its_picture(name, server):
    (pack,) = [pack for pack, offered in json.loads(server.get("/workflow_templates")).items() if name in offered]
    assert json.loads(server.get(f"/api/workflow_templates/{pack}/{name}.json"))["nodes"]
    assert server.get(f"/api/workflow_templates/{pack}/{name}.jpg")[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    "name", [name for name in TEMPLATES if name not in (REFINER, SAM3)]
)  # test_companions.py draws with the refiner
def test_the_template_draws(name, server):
    """As it is; those for published models, here random and tiny ones under their names, smaller and in one step."""
    graph = graphs.load(name)
    samples = any("steps" in node["inputs"] for node in graph.values())
    for node in graph.values():
        if samples and node["class_type"] in ("EmptyLatentImage", "EmptyImage") and node["inputs"]["width"] > 384:
            side = 384 if "pixart" in name else 128  # below 384 ComfyUI fails on PixArt's positions
            node["inputs"] |= {"width": side, "height": side}
            for other in graph.values():
                other["inputs"] |= {"steps": 1} if "steps" in other["inputs"] else {}
    outputs = server.run(graph)
    assert outputs.images or outputs.nodes
    assert all(image.std() > 0 for image in outputs.images)


def test_the_template_of_sam3_fails_for_nothing_but_its_weights(server):
    """The file of that name holds none, and the queue takes the graph."""
    with pytest.raises(GraphFailed) as failed:
        server.run(graphs.load(SAM3))
    assert failed.value.node_class == "CheckpointLoaderSimple"
