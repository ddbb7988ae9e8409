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
BOX = {"__value__": [{"x": 8, "y": 8, "width": 64, "height": 64, "label": "circle"}]}
REGIONS = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny_sd15.safetensors"}},
    "2": {
        "class_type": "MuLanLoader",
        "inputs": {
            "text_encoder": "tiny_internvl.safetensors",
            "adapter": "tiny_sd15_adapter.safetensors",
            "prompt_style": "default",
        },
    },
    "3": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "4": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 128, "height": 128}},
    "5": {
        "class_type": "MuLanRegionPrompts",
        "inputs": {
            "clip": ["2", 1], "prompts": "a star\ncircle: a red circle", "bboxes": BOX, "width": 128, "height": 128
        },
    },
    "6": {"class_type": "VAEEncode", "inputs": {"pixels": ["3", 0], "vae": ["1", 2]}},
    "7": {
        "class_type": "MuLanWordMaps",
        "inputs": {
            "model": ["1", 0], "clip": ["2", 1], "latent": ["6", 0], "image": ["3", 0], "text": "a red circle",
        },
    },
    "8": {
        "class_type": "VisionLLMTrackDetections",
        "inputs": {
            "image": ["3", 0], "bboxes": BOX, "masks": ["4", 0], "min_overlap": 0.2, "max_gap": 1, "min_length": 1,
            "fill": True, "smooth": 0.0,
        },
    },
    "9": {
        "class_type": "InternVLLoader",
        "inputs": {"checkpoint": "tiny_internvl_vision.safetensors", "text_encoder": "tiny_internvl.safetensors"},
    },
    "10": {
        "class_type": "InternVLFindAlike",
        "inputs": {
            "internvl": ["9", 0], "image": ["3", 0], "bboxes": BOX, "masks": ["4", 0], "example": ["3", 0],
            "threshold": 0.0, "top_k": 1, "margin": 0,
        },
    },
    "12": {
        "class_type": "VisionLLMTextToBoxes",
        "inputs": {"text": "<box>[[100, 100, 500, 500]]</box>", "image": ["3", 0], "coordinates": "auto"},
    },
    "11": {
        "class_type": "VisionLLMCheckImages",
        "inputs": {
            "image": ["3", 0], "checklist": "circle", "bboxes": BOX, "masks": ["4", 0], "threshold": 0.3, "top_k": 1,
            "grow": 8,
        },
    },
}  # fmt: skip
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
    for graph in (*map(graphs.load, GRAPHS), CONTEXTS, REGIONS):
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
    unseen = {(id, slot) for id, slots in passed_on.items() for slot in slots} - seen
    assert unseen <= conditioning_of_instruct, unseen - conditioning_of_instruct
