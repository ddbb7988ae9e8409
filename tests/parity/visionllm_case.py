"""One golden of VisionLLM v2: what upstream was given, and what it answered."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from mulan_nodes.tests.parity import visionllm_recipe as recipe


class Case:
    """`facts` is the golden's .json, `stored` its tensors; weights and inputs are made by the recipe."""

    def __init__(self, folder: Path, name: str):
        self.folder = folder
        self.name = name
        self.facts = json.loads((folder / f"{name}.json").read_text("utf-8"))
        self.stored = load_file(folder / f"{name}.safetensors")
        self.seed = self.facts.get("seed", 0)

    def weights(self, manifest: dict | None = None, seed: int | None = None) -> dict[str, torch.Tensor]:
        """Upstream-named tensors, float32, of `manifest` (default: the golden's own)."""
        made = recipe.state_dict(manifest or self.facts["weights"], self.seed if seed is None else seed)
        return {name: torch.from_numpy(np.asarray(value)) for name, value in made.items()}

    def inputs(self, name: str, shape, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
        return torch.from_numpy(recipe.inputs(name, shape, self.seed, scale, offset))

    def described(self, text: str) -> list[torch.Tensor]:
        """The inputs that a golden's words name: "fill.inputs('a', (3,56,56), seed)" -> [one of shape [3, 56, 56]]."""
        return [
            self.inputs(name, [int(side) for side in shape.split(",") if side.strip()])
            for name, shape in re.findall(r"inputs\('([^']+)',\s*\(([\d,\s]+)\)", text)
        ]

    def tolerance(self, name: str, suggested: float) -> float:
        """Upstream's own float32 may be further off than usual: ours and its may differ by twice that."""
        return max(suggested, 2 * self.facts.get("fp32_vs_fp64_max_abs", {}).get(name, 0.0))

    def uniform(self, name: str, shape) -> torch.Tensor:
        """float64 in [0, 1)."""
        return torch.from_numpy(recipe.uniform(name, shape, self.seed))

    def image(self, name: str, height: int, width: int) -> np.ndarray:
        """uint8 [height, width, 3]."""
        return recipe.image(name, height, width, self.seed)


def listed(manifest: Path) -> dict:
    """A manifest of a full-size part.

    {"tensors": {name: shape}, "aliases": {name: canonical name}, "int_buffers": [[name, shape, dtype]]}.
    """
    return json.loads(manifest.read_text("utf-8"))
