"""What nodes return lies where ComfyUI's own nodes put theirs, with `--gpu-only --fp16-intermediates`, and mixes with
it. In a real server with the accelerator of tests/accelerator, which mixes no two devices.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mulan_nodes.nodes.checked_node import PASSED_ON
from mulan_nodes.tools import comfyui, graphs
from mulan_nodes.tools.comfy_server import ComfyServer
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.tools.shards import shard

TESTS = Path(__file__).resolve().parents[1]
PLACE = ["npu:0", "float16"]
GRAPHS = (  # saved files are loaded by later ones
    "visionllm_boxes",
    "visionllm_languages",
    "visionllm_region",
    "visionllm_segment",
    "visionllm_instruct",
    "visionllm_pose_controlnet",
    "internvl_label_folder",
    "internvl_retrieval_grid",
    "mulan_prompt_inspector",
    "mulan_save_conditioning",
    "mulan_load_conditioning",
)
MAPPERS = "mappers"
CONTEXTS = {
    "1": {"class_type": "VisionLLMLoader", "inputs": {"checkpoint": MAPPERS}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "3": {
        "class_type": "VisionLLMGenerateConditioning",
        "inputs": {"visionllm": ["1", 0], "prompt": "a star", "clip": ["5", 1]},
    },
    "4": {
        "class_type": "VisionLLMEditConditioning",
        "inputs": {"visionllm": ["1", 0], "image": ["2", 0], "instruction": "in winter", "clip": ["5", 1]},
    },
    "5": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny_sd15.safetensors"}},
}
STOCK = {  # what brings an output together with a value of ComfyUI's own: type -> its nodes
    "IMAGE": {
        "stock": ("EmptyImage", {"width": 32, "height": 32, "batch_size": 1, "color": 255}),
        "met": ("ImageStitch", {"image1": "ours", "image2": "stock", "direction": "right", "match_image_size": True,
                                "spacing_width": 0, "spacing_color": "white"}),
    },
    "MASK": {
        "stock": ("SolidMask", {"value": 1.0, "width": 32, "height": 32}),
        "met": ("MaskComposite", {"destination": "ours", "source": "stock", "x": 0, "y": 0, "operation": "add"}),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def server(comfyui_folder, models):
    shard(random_visionllm.checkpoint(models / "visionllm" / MAPPERS, mappers=True))
    running = ComfyServer(
        comfyui_folder,
        cpu=False,
        extra_models=models,
        extra_nodes=TESTS / "custom_nodes",
        arguments=("--gpu-only", "--fp16-intermediates"),
        environment={"PYTHONPATH": str(TESTS / "accelerator")},
    )
    with running:
        comfyui.write_example_images(running.folder / "input")
        with Image.open(comfyui_folder / "input" / "example.png") as image:  # every ComfyUI has it
            image.resize((128, 128)).save(running.folder / "input" / "example.png")
        yield running


@pytest.fixture(scope="module")
def passed_on(server) -> dict[str, dict[int, str]]:
    """The outputs of this pack's nodes that ComfyUI's nodes take, by slot, with their types.

    Without those that are lists, which may be empty: then no node sees them.
    """
    return {
        id: {
            slot: kind
            for slot, (kind, is_list) in enumerate(zip(info["output"], info["output_is_list"], strict=True))
            if kind in PASSED_ON and not is_list
        }
        for id, info in json.loads(server.get("/object_info")).items()
        if info["category"].startswith("MuLan Nodes")
    }


def watched(graph: dict, passed_on: dict[str, dict[int, str]]) -> dict:
    """The graph in one step, with a look at each output of ours, alone and together with a stock node's."""
    whole = without_grid_beside(graph)
    for id, node in graph.items():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 1
        for slot, kind in passed_on.get(node["class_type"], {}).items():
            links = {"ours": [id, slot]} | {part: [f"{id}.{slot} {part}", 0] for part in STOCK.get(kind, ())}
            for part, (stock, inputs) in STOCK.get(kind, {}).items():
                inputs = {name: links[value] if value in (*links,) else value for name, value in inputs.items()}
                whole[f"{id}.{slot} {part}"] = {"class_type": stock, "inputs": inputs}
            for part in {"ours", "met"} & links.keys():
                whole[f"{id}.{slot} look {part}"] = {"class_type": "Places", "inputs": {"value": links[part]}}
    return whole


def without_grid_beside(graph: dict) -> dict:
    """Leave out where ComfyUI's Image Grid, which stays on the CPU, meets other images, and all that comes behind."""
    grids = {id for id, node in graph.items() if node["class_type"] == "ImageGrid"}
    sources = {
        id: {value[0] for value in node["inputs"].values() if isinstance(value, list)} for id, node in graph.items()
    }
    gone = {id for id, node in graph.items() if node["class_type"] == "ImageStitch" and sources[id] & grids}
    while behind := {id for id in graph if id not in gone and sources[id] & gone}:
        gone |= behind
    return {id: node for id, node in graph.items() if id not in gone}


def test_every_output_lies_with_comfyui_s_own(server, passed_on):
    seen = set()
    for graph in (*map(graphs.load, GRAPHS), CONTEXTS):
        shown = server.run(watched(graph, passed_on)).nodes
        for id, node in graph.items():
            for slot, kind in passed_on.get(node["class_type"], {}).items():
                look = shown.get(f"{id}.{slot} look ours")
                if look is None:  # this time the node gave nothing there
                    continue
                places = json.loads(look["text"][0])
                expected = PLACE if PASSED_ON[kind] else PLACE[:1]
                assert {tuple(place[: len(expected)]) for place in places} == {tuple(expected)}, (node, slot)
                seen.add((node["class_type"], slot))
    conditioning_of_instruct = {("VisionLLMInstruct", 7), ("VisionLLMInstruct", 8)}  # given where it is told to draw
    assert {(id, slot) for id, slots in passed_on.items() for slot in slots} - seen <= conditioning_of_instruct
