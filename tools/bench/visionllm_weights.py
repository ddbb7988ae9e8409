"""Random weights of VisionLLM v2 7B as a published folder: every width of the real one, few of its layers, and a small
vocabulary's tokenizer.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from mulan_nodes.mulan.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec

from ..random_checkpoints.visionllm import PARITY, sentencepiece_model

RECIPE = "1"  # part of the folder's name: raise it when what is written here changes
MANIFEST = PARITY / "manifests" / "visionllm" / "visionllmv2_7b_swin_t.json"
PIECES = 600  # of the tokenizer; the model embeds its 32026 all the same
LEFT_OUT = ("sd.", "ip2p.", "unipose.")  # nothing here asks them
_RECOMPUTED = ("relative_position_index", "position_ids", "num_batches_tracked")
_LAYER = re.compile(r"(llm|vis_encoder)\..*?\.layers\.(\d+)\.")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Depth:
    """How many layers are kept; the published model has 32 and 24."""

    language: int
    tower: int


WHOLE = Depth(language=32, tower=24)


def write_published(cache: Path, depth: Depth, say: Say) -> Path:
    """The folder, written on first use, in float32: what it holds is what the model computes with on a CPU."""
    folder = cache / f"visionllm-{depth.language}-{depth.tower}-recipe{RECIPE}"
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    if not weights.exists():
        shapes = kept_shapes(json.loads(MANIFEST.read_text("utf-8")), depth)
        say(f"files: {folder.name}, {4 * sum(map(prod, shapes.values())) / 1e9:.1f} GB")
        (folder / "config.json").write_text("{}", "utf-8")
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(PIECES))
        with SafetensorsWriter(
            weights, {name: TensorSpec(torch.float32, shape) for name, shape in shapes.items()}, {"format": "pt"}
        ) as file:
            for name, shape in shapes.items():
                file.write(name, random_tensor(name, shape))
    return folder


def kept_shapes(manifest: dict, depth: Depth) -> dict[str, tuple[int, ...]]:
    def kept(name: str) -> bool:
        layer = _LAYER.match(name)
        most = {"llm": depth.language, "vis_encoder": depth.tower}
        if name.startswith(LEFT_OUT) or name.endswith(_RECOMPUTED) or name in manifest["aliases"]:
            return False
        return layer is None or int(layer[2]) < most[layer[1]]

    return {name: tuple(shape) for name, shape in manifest["tensors"].items() if kept(name)}


def random_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Normal values; a matrix keeps the size of what goes through it, a norm nearly leaves it as it is."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) < 2:
        return values.mul_(0.1).add_(1.0 if name.endswith(".weight") else 0.0)
    return values.mul_(prod(shape[1:]) ** -0.5)
