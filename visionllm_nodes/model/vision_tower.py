"""The vision tower of the 7B model: ComfyUI's CLIP-L/336, its hidden states instead of its pooled vector.

Source: VisionLLMv2/visionllmv2/model/modeling_visionllmv2.py (`vis_encoder`, `vis_output_layer` -2; the region encoder
reads the last three).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.clip_model import CLIPVision
from comfy.ldm.modules.attention import optimized_attention_for_device
from torch import nn

PATCH_SIZE = 14


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of a CLIP vision model, in transformers' words."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int  # pixels, height and width
    hidden_act: str = "quick_gelu"

    @property
    def patch_size(self) -> int:
        return PATCH_SIZE

    @property
    def num_patches(self) -> int:
        """Tokens per image, without the class token."""
        return (self.image_size // PATCH_SIZE) ** 2

    def for_comfyui(self) -> dict[str, Any]:
        """Return the dict that ComfyUI's CLIPVision takes."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "image_size": self.image_size,
            "patch_size": PATCH_SIZE,
            "num_channels": 3,
            "hidden_act": self.hidden_act,
            "model_type": "clip_vision_model",
        }


class VisionTower(nn.Module):
    """Normalized images -> hidden states of chosen layers."""

    def __init__(self, config: TowerConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        self.config = config
        self.vision_model = CLIPVision(config.for_comfyui(), dtype, device, operations)
        for name in ("pre_layrnorm", "post_layernorm"):  # ComfyUI gives these neither dtype nor device
            setattr(self.vision_model, name, operations.LayerNorm(config.hidden_size, dtype=dtype, device=device))

    def forward(self, images: torch.Tensor, layers: tuple[int, ...] = (-2,)) -> list[torch.Tensor]:
        """Return the patches' hidden states [N, patches, hidden_size] behind each of `layers`.

        0 is the embeddings, -1 the last layer.

        `images` [N, 3, S, S], normalized. Neither the class token nor the last norm takes part.
        """
        wanted = [layer % (self.config.num_hidden_layers + 1) for layer in layers]
        hidden_states = self.vision_model.pre_layrnorm(self.vision_model.embeddings(images))
        attention = optimized_attention_for_device(hidden_states.device, mask=False, small_input=True)
        found = {0: hidden_states}
        encoder_layers: Any = self.vision_model.encoder.layers
        for index, layer in enumerate(encoder_layers[: max(wanted)], 1):
            # ComfyUI's own layer adds in place, which training cannot differentiate.
            hidden_states = hidden_states + layer.self_attn(layer.layer_norm1(hidden_states), None, attention)
            hidden_states = hidden_states + layer.mlp(layer.layer_norm2(hidden_states))
            if index in wanted:
                found[index] = hidden_states
        return [found[index][:, 1:] for index in wanted]
