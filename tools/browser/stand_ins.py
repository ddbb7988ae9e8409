"""Tiny models under the names that templates ask for, so that each of them runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..comfyui import write_tiny_models

# What a template asks for below models/ -> the tiny model that stands in.
STAND_INS = {
    "checkpoints/v1-5-pruned-emaonly-fp16.safetensors": "checkpoints/tiny_sd15.safetensors",
    "loras/lcm-lora-sdv1-5.safetensors": "loras/tiny_lcm_lora.safetensors",
    "controlnet/control_v11p_sd15_canny_fp16.safetensors": "controlnet/tiny_layout_controlnet.safetensors",
    "controlnet/control_v11p_sd15_openpose_fp16.safetensors": "controlnet/tiny_layout_controlnet.safetensors",
    "mulan/sd15_aesthetic.pth": "mulan/tiny_sd15_adapter.safetensors",
    "text_encoders/InternVL-14B-224px_text_int8.safetensors": "text_encoders/tiny_internvl.safetensors",
    "internvl/InternVL-14B-224px_vision_int8.safetensors": "internvl/tiny_internvl_vision.safetensors",
    "internvl_chat/InternVL3_5-2B_int8.safetensors": "internvl_chat/tiny_internvl_chat.safetensors",
    "visionllm/VisionLLMv2_int8.safetensors": "visionllm/tiny_visionllm.safetensors",
}


def write(models: Path) -> None:
    """Write the tiny models and the stand-ins below a models folder."""
    write_tiny_models(models)
    for name, tiny in STAND_INS.items():
        target = models / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".pth":
            torch.save(load_file(models / tiny), target)
        else:
            shutil.copyfile(models / tiny, target)


def missing(graph: dict, models: Path) -> list[str]:
    """Return the models that a template names and that no stand-in has the name of."""
    named = {
        f"{model['directory']}/{model['name']}"
        for node in all_nodes(graph)
        for model in node.get("properties", {}).get("models", [])
    }
    return sorted(name for name in named if not (models / name).is_file())


def all_nodes(graph: dict) -> list[dict]:
    """Return the nodes of a workflow and of its subgraphs."""
    inner = graph.get("definitions", {}).get("subgraphs", [])
    return [*graph["nodes"], *(node for subgraph in inner for node in subgraph["nodes"])]


def read(file: Path) -> dict:
    return json.loads(file.read_text("utf-8"))
