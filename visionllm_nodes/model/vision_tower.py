"""The vision tower of the 7B model: the host's CLIP-L/336, its hidden states instead of its pooled vector.

Source: VisionLLMv2/visionllmv2/model/modeling_visionllmv2.py (`vis_encoder`, `vis_output_layer` -2; the region encoder reads the last three).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy.clip_model import CLIPVision
from comfy.ldm.modules.attention import optimized_attention_for_device
from torch import nn

PATCH = 14


@dataclass(frozen=True)
class TowerConfig:
    width: int
    feed_forward: int
    layers: int
    heads: int
    picture: int  # pixels, height and width
    activation: str = "quick_gelu"

    @property
    def patches(self) -> int:
        """Tokens per picture."""
        return (self.picture // PATCH) ** 2

    def for_host(self) -> dict:
        return {
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "image_size": self.picture,
            "patch_size": PATCH,
            "num_channels": 3,
            "hidden_act": self.activation,
            "model_type": "clip_vision_model",
        }


class VisionTower(nn.Module):
    """Normalised pictures -> hidden states of chosen layers. Weights bear the host's names (`clip.encoder.layers.0.self_attn...`)."""

    def __init__(self, config: TowerConfig, *, operations, dtype=None, device=None):
        super().__init__()
        self.config = config
        self.clip = CLIPVision(config.for_host(), dtype, device, operations)
        for name in ("pre_layrnorm", "post_layernorm"):  # the host gives these neither dtype nor device
            setattr(self.clip, name, operations.LayerNorm(config.width, dtype=dtype, device=device))

    def forward(self, pictures: torch.Tensor, layers: tuple[int, ...] = (-2,)) -> list[torch.Tensor]:
        """pictures [N, 3, S, S] -> per asked layer (-1: the last) the patches' states [N, patches, width], neither class token nor last norm."""
        depth = self.config.layers
        wanted = [layer % (depth + 1) for layer in layers]
        states = self.clip.pre_layrnorm(self.clip.embeddings(pictures))
        attention = optimized_attention_for_device(states.device, mask=False, small_input=True)
        found = {0: states}
        for index, layer in enumerate(self.clip.encoder.layers[: max(wanted)], 1):
            # The host's own layer adds in place, which training cannot differentiate.
            states = states + layer.self_attn(layer.layer_norm1(states), None, attention)
            states = states + layer.mlp(layer.layer_norm2(states))
            if index in wanted:
                found[index] = states
        return [found[index][:, 1:] for index in wanted]
