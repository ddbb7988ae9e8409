"""From the vision tower's hidden size to the language model's.

Source: VisionLLMv2/visionllmv2/model/modeling_visionllmv2.py (`vl_bridge`; pixel shuffle as InternVL 1.5 does it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import nn


@dataclass(frozen=True)
class BridgeConfig:
    """Sizes of the bridge, of three kinds.

    `linear`: one layer; `mlp2x_gelu`: two; `internvl_mlp`: two behind a norm, where `in_features` counts four shuffled
    patches.
    """

    in_features: int
    out_features: int
    num_layers: int
    normed: bool


def pixel_shuffle(x: torch.Tensor) -> torch.Tensor:
    """Make one token of a square of four neighbors: [N, H, W, C] -> [N, H/2, W/2, 4C]."""
    return rearrange(x, "n (h i) (w j) c -> n h w (i j c)", i=2, j=2)


class Bridge(nn.Sequential):
    """Linear layers with GELU between them: [..., in_features] -> [..., out_features]."""

    def __init__(self, config: BridgeConfig, *, operations: Any, dtype=None, device=None):
        kw = dict(dtype=dtype, device=device)
        modules = [operations.LayerNorm(config.in_features, **kw)] if config.normed else []
        modules.append(operations.Linear(config.in_features, config.out_features, **kw))
        for _ in range(config.num_layers - 1):
            modules += [nn.GELU(), operations.Linear(config.out_features, config.out_features, **kw)]
        super().__init__(*modules)
        self.config = config
