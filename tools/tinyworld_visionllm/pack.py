"""The trained parts -> one file under the published names, which loads as a converted checkpoint does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from mulan_nodes.mulan.checkpoints.tensor_files import CONFIG
from mulan_nodes.mulan.checkpoints.weight_source import WeightSource
from mulan_nodes.visionllm_nodes.model.image_inputs import ImageSettings
from mulan_nodes.visionllm_nodes.model.keys import bridge, clip, grounding, llama, pose, region_encoder, super_link
from mulan_nodes.visionllm_nodes.model.llama_tokenizer import VisionTokenizer
from mulan_nodes.visionllm_nodes.model.visionllm_files import SPIECE, TOKENIZER

from .architecture import (
    BRIDGE,
    GROUNDING,
    GROUPS,
    HEADS,
    POSE,
    REGION,
    SETTINGS,
    SUPER_LINK,
    TOWER,
    TOWER_LAYER,
    language_config,
)

METADATA = {
    "title": "VisionLLM Nodes: tiny world",
    "description": "A tiny VisionLLM v2 of a world of coloured shapes, trained from nothing on pictures drawn by a "
    "program",
    "license": "MIT",
}


def told(tokenizer: VisionTokenizer) -> dict:
    """What upstream's config.json says and no tensor does, and the settings that the published model has no need of."""
    changed = {
        field.name: getattr(SETTINGS, field.name)
        for field in dataclasses.fields(ImageSettings)
        if getattr(SETTINGS, field.name) != field.default
    }
    return {
        "model_type": "visionllmv2",
        "vis_output_layer": TOWER_LAYER,
        "vl_bridge_type": "mlp2x_gelu",
        "vis_encoder_config": {"num_attention_heads": HEADS, "hidden_act": TOWER.hidden_act},
        "llm_config": {"num_attention_heads": HEADS, "rms_norm_eps": language_config(len(tokenizer)).rms_norm_eps},
        "gdino_config": {"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS},
        "unipose_config": {"nheads": HEADS, "num_box_decoder_layers": POSE.num_box_layers, "num_groups": GROUPS},
        TOKENIZER: {"tokenizer_config.json": {"legacy": tokenizer.legacy}},
        "picture_settings": changed,
    }


def _naming(vocabulary: int) -> dict[str, tuple[str, Any, Any]]:
    """Of each part: what its published names begin with, the module that knows them, its config."""
    return {
        "tower": ("vis_encoder.", clip, TOWER),
        "bridge": ("vl_bridge.", bridge, BRIDGE),
        "language": ("llm.", llama, language_config(vocabulary)),
        "super_link": (super_link.PREFIX, super_link, SUPER_LINK),
        "region_encoder": ("region_encoder.", region_encoder, REGION),
        "grounding": ("gdino.", grounding, GROUNDING),
        "pose": ("unipose.", pose, POSE),
    }


def part_of(tensors: Mapping[str, torch.Tensor], part: str, vocabulary: int) -> dict[str, torch.Tensor]:
    """Tensors by upstream's names -> a part's tensors by our names, in float32."""
    prefix, naming, config = _naming(vocabulary)[part]
    return {
        ours: torch.cat([tensors[prefix + name] for name in source.names]).float()
        for ours, source in naming.sources(config).items()
    }


def published(parts: Mapping[str, nn.Module], vocabulary: int) -> dict[str, torch.Tensor]:
    """Parts of the model by our names -> tensors by upstream's names."""
    tensors = {}
    for part, module in parts.items():
        prefix, naming, config = _naming(vocabulary)[part]
        values, sources = module.state_dict(), naming.sources(config)
        if values.keys() != sources.keys():
            raise ValueError(
                f"the {part} has other tensors than its published names: {sorted(values.keys() ^ sources.keys())[:3]}"
            )
        for ours, source in sources.items():
            tensors |= dict(zip((prefix + name for name in source.names), _apart(values[ours], source), strict=True))
    return tensors


def _apart(tensor: torch.Tensor, source: WeightSource) -> tuple[torch.Tensor, ...]:
    """What `source` joins into one of our tensors; here such rows are always of one number."""
    if source.arrange is not None:
        raise ValueError(f"{source.names} cannot be taken apart")
    return tensor.chunk(len(source.names))


def write(parts: Mapping[str, nn.Module], tokenizer: VisionTokenizer, path: Path) -> Path:
    """Writes the file, in float16. It appears complete or not at all."""
    tensors = {name: tensor.half().contiguous().clone() for name, tensor in published(parts, len(tokenizer)).items()}
    tensors[SPIECE] = torch.from_numpy(np.frombuffer(tokenizer.model, np.uint8).copy())
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(save(tensors, {**METADATA, CONFIG: json.dumps(told(tokenizer))}))
    unfinished.replace(path)
    return path
