"""Models under the names that templates ask for, tiny ones and random ones, so that each of them runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file, save_file

from ...mulan.checkpoints.quantization import INT8
from ...mulan.checkpoints.tensor_files import open_tensors
from ..comfyui import CACHE, device_arguments, open_comfyui, write_tiny_models
from ..random_checkpoints import visionllm as random_visionllm
from ..shards import shard

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
# What only one template can use: a text encoder as wide as PixArt's captions, a VisionLLM with the mappers to
# Stable Diffusion and more than 5 keypoints.
ENCODER, PIXART = "InternVL-14B-224px_text_int8.safetensors", "PixArt"
KEPT, WIDE = f"{ENCODER}.kept", f"{ENCODER}.wide"
ALL_TINY, AREA = "MuLanTinyModels", "ConditioningSetArea"
WITH_MAPPERS, BEYOND_THE_TINY_ONE = "VisionLLMv2", ("VisionLLMGenerateConditioning", "VisionLLMPose")
LARGE, STEPS = 256, 2  # an image wider than LARGE is drawn small, in so many steps
SMALL = "small_"  # what the name of an image to draw on begins with: a copy, at most LARGE wide and high
SIDE, PIXART_SIDE = 128, 384  # below 384 ComfyUI fails on PixArt's positions
AREAS_SHRINK = 4  # with areas, which lie within the whole image


def folder() -> Path:
    """Return a models folder with all of them; it is made once."""
    makers = Path(__file__).resolve().parents[2] / "tests" / "graph" / "models.py"
    content = makers.read_bytes() + repr((STAND_INS, SOURCES)).encode()
    models = CACHE / f"stand_ins_{hashlib.sha256(content).hexdigest()[:12]}"
    if not models.is_dir():
        for old in CACHE.glob("stand_ins_*"):
            shutil.rmtree(old)
        print(f"writing models for the templates to {models} ...", flush=True)
        unfinished = models.with_name("unfinished_stand_ins")
        shutil.rmtree(unfinished, ignore_errors=True)
        open_comfyui(*device_arguments())
        from ...tests.graph.models import make_all

        write_tiny_models(unfinished)
        make_all(unfinished, unfinished)
        shard(random_visionllm.checkpoint(unfinished / "visionllm" / WITH_MAPPERS, mappers=True))
        encoders = unfinished / "text_encoders"
        shutil.copyfile(encoders / ENCODER, encoders / KEPT)
        metadata = dict(open_tensors(encoders / ENCODER).metadata)
        save_file(load_file(encoders / "random_wide.safetensors"), encoders / WIDE, metadata)
        unfinished.rename(models)
    return models


def write_stand_ins(tiny: Path, models: Path) -> None:
    """Write the stand-ins below `models`, from the tiny models below `tiny`."""
    for name, stands_in in STAND_INS.items():
        source, target = tiny / f"{stands_in}.safetensors", models / f"{name}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        metadata = dict(open_tensors(source).metadata)
        if origin := SOURCES.get(target.parent.name):
            metadata |= {"source": f"{origin} on Hugging Face", "quantization": INT8.algorithm}
        save_file(load_file(source), target, metadata)


def prepare(graph: dict) -> dict:
    """Put the models of this template in place; return its graph, small and in few steps."""
    encoders = folder() / "text_encoders"
    nodes = all_nodes(graph)
    pixart = any(PIXART in str(value) for node in nodes for value in widget_values(node))
    wanted = encoders / (WIDE if pixart else KEPT)
    if wanted.stat().st_size != (encoders / ENCODER).stat().st_size:
        shutil.copyfile(wanted, encoders / "unfinished")
        (encoders / "unfinished").replace(encoders / ENCODER)  # a server may have mapped the other
    if any(node["type"] in BEYOND_THE_TINY_ONE for node in nodes):
        for node in nodes:
            if node["type"] == "VisionLLMLoader":
                node["widgets_values"][0] = WITH_MAPPERS
    draws, areas = (any(node["type"] == kind for node in nodes) for kind in ("KSampler", AREA))
    if not any(node["type"] == ALL_TINY for node in nodes):
        for node in nodes:
            values = node.get("widgets_values") or []
            if node["type"] == AREA:
                values[:4] = [value // AREAS_SHRINK for value in values[:4]]
            elif node["type"] == "EmptyLatentImage" and values[0] > LARGE:
                side = PIXART_SIDE if pixart else SIDE
                values[:2] = [value // AREAS_SHRINK for value in values[:2]] if areas else [side] * 2
            elif node["type"] == "KSampler":
                values[2] = STEPS
            elif node["type"] == "LoadImage" and draws:
                values[0] = SMALL + values[0]
    return graph


def write_small_images(folder: Path) -> None:
    """Write the SMALL copies of an input folder's images."""
    for file in list(folder.glob("*.png")):
        with Image.open(file) as image:
            image.thumbnail((LARGE, LARGE))
            image.save(file.with_name(SMALL + file.name))


def widget_values(node: dict) -> list:
    values = node.get("widgets_values") or [] or []
    return list(values.values()) if isinstance(values, dict) else values


def all_nodes(graph: dict) -> list[dict]:
    """Return the nodes of a workflow and of its subgraphs."""
    inner = graph.get("definitions", {}).get("subgraphs", [])
    return [*graph["nodes"], *(node for subgraph in inner for node in subgraph["nodes"])]


def read(file: Path) -> dict:
    return json.loads(file.read_text("utf-8"))
