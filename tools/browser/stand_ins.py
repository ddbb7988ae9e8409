"""Tiny models under the names that templates ask for, so that each of them runs."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from ...mulan.checkpoints.quantization import INT8
from ...mulan.checkpoints.tensor_files import open_tensors
from ..comfyui import write_tiny_models

# What a template asks for below models/ -> the tiny model that stands in.
STAND_INS = {
    "checkpoints/v1-5-pruned-emaonly-fp16": "checkpoints/tiny_sd15",
    "loras/lcm-lora-sdv1-5": "loras/tiny_lcm_lora",
    "controlnet/control_v11p_sd15_canny_fp16": "controlnet/tiny_layout_controlnet",
    "controlnet/control_v11p_sd15_openpose_fp16": "controlnet/tiny_layout_controlnet",
    "mulan/sd15_aesthetic": "mulan/tiny_sd15_adapter",
    "text_encoders/InternVL-14B-224px_text_int8": "text_encoders/tiny_internvl",
    "internvl/InternVL-14B-224px_vision_int8": "internvl/tiny_internvl_vision",
    "internvl_chat/InternVL3_5-2B_int8": "internvl_chat/tiny_internvl_chat",
    "visionllm/VisionLLMv2_int8": "visionllm/tiny_visionllm",
}
# By its source MuLan Get Model knows what it has downloaded.
SOURCES = {
    "mulan": "mulanai/mulan-lang-adapter/sd15_aesthetic.pth",
    "text_encoders": "OpenGVLab/InternVL-14B-224px",
    "internvl": "OpenGVLab/InternVL-14B-224px",
    "internvl_chat": "OpenGVLab/InternVL3_5-2B",
    "visionllm": "OpenGVLab/VisionLLMv2",
}


def write(models: Path) -> None:
    """Write the tiny models and the stand-ins below a models folder."""
    write_tiny_models(models)
    write_stand_ins(models, models)


def write_stand_ins(tiny: Path, models: Path) -> None:
    """Write the stand-ins below `models`, from the tiny models below `tiny`."""
    for name, stands_in in STAND_INS.items():
        source, target = tiny / f"{stands_in}.safetensors", models / f"{name}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        metadata = dict(open_tensors(source).metadata)
        if origin := SOURCES.get(target.parent.name):
            metadata |= {"source": f"{origin} on Hugging Face", "quantization": INT8.algorithm}
        save_file(load_file(source), target, metadata)


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
