"""What the tiny companions are made of: the shipped tiny models read back, LoRA layers around them, a ControlNet beside
them.

Only training and tests need this; the files that come of it need nothing but ComfyUI.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.embeddings import Timesteps
from torch import nn

from mulan_nodes.mulan.conditioning.adapter import LanguageAdapter
from mulan_nodes.mulan.tiny_models.packs import pack_path, read_pack

from . import narrow
from .adapter_training import TextStates
from .base_training import Base, english_texts
from .packed_models import load_packed, packed_text_encoder
from .text_training import PREFIX

LORA_RANK = 16
HINT_WIDTHS = (12, 20, 40, 48)  # of the 16, 32, 96 and 256 channels that the published layout has


@dataclass(frozen=True)
class Shipped:
    """The tiny models of a pack, narrow again and frozen: what companions are trained against, because it is what they
    will meet.
    """

    base: Base
    autoencoder: narrow.TinyAutoencoder
    adapter: LanguageAdapter
    text_states: TextStates

    def mulan_context(self, texts: list[str]) -> torch.Tensor:
        """Texts in any language -> contexts [B, 120, 96] as the MuLan Loader's CLIPs give them; "" is a negative
        prompt, without prefix.
        """
        with torch.no_grad():
            return self.adapter(self.text_states([text and PREFIX + text for text in texts]))


def read_shipped() -> Shipped:
    packed, _ = read_pack(pack_path("world"))
    base, autoencoder, adapter = Base(english_texts()), narrow.TinyAutoencoder(), narrow.adapter()
    load_packed(packed, base, autoencoder, adapter)
    return Shipped(base, autoencoder, adapter, TextStates(packed_text_encoder(packed)))


class LowRank(nn.Module):
    """What a LoRA adds to one linear or convolutional layer; nothing, before training."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int = LORA_RANK):
        super().__init__()
        if isinstance(layer, nn.Conv2d):
            self.lora_down = nn.Conv2d(
                layer.in_channels,
                rank,
                layer.kernel_size,  # pyright: ignore[reportArgumentType]  (torch says tuple[int, ...] of a pair)
                layer.stride,  # pyright: ignore[reportArgumentType]
                layer.padding,  # pyright: ignore[reportArgumentType]
                bias=False,
            )
            self.lora_up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.lora_down = nn.Linear(layer.in_features, rank, bias=False)
            self.lora_up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)

    def forward(self, x):
        return self.lora_up(self.lora_down(x))


def lora(unet: nn.Module) -> nn.ModuleDict:
    """A LoRA for every layer of the UNet's blocks, by the layers' names in kohya's spelling."""
    return nn.ModuleDict({name: LowRank(layer) for name, layer in _lora_layers(unet).items()})


def _lora_layers(unet: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {
        f"lora_unet_{name.replace('.', '_')}": layer
        for name, layer in unet.named_modules()
        if name.startswith(("down_blocks.", "up_blocks.")) and isinstance(layer, (nn.Linear, nn.Conv2d))
    }


@contextmanager
def applied(lora: nn.ModuleDict, unet: nn.Module) -> Iterator[None]:
    """Inside, the UNet computes with the LoRA at strength 1."""

    def hook(part):
        return lambda _, inputs, output: output + part(*inputs)

    hooks = [layer.register_forward_hook(hook(lora[name])) for name, layer in _lora_layers(unet).items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def control_net(unet: nn.Module) -> ControlNetModel:
    """A ControlNet for the narrow UNet, its encoder a copy of the UNet's: diffusers' class with padded norms."""
    net = ControlNetModel(
        block_out_channels=(narrow.UNET_WIDTH,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type="UNetMidBlock2D",
        cross_attention_dim=narrow.CONTEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=32,
        conditioning_embedding_out_channels=HINT_WIDTHS,
    )
    time_proj = unet.time_proj
    assert isinstance(time_proj, Timesteps)
    net.time_proj = time_proj
    net.time_embedding.linear_1 = nn.Linear(narrow.UNET_FULL_WIDTH, 4 * narrow.UNET_WIDTH)
    narrow.pad_norms(net, narrow.UNET_FULL_WIDTH // narrow.UNET_WIDTH)
    for name in ("time_embedding", "conv_in", "down_blocks"):
        getattr(net, name).load_state_dict(getattr(unet, name).state_dict())
    return net


def controlled(
    unet: nn.Module, net: ControlNetModel, x, timesteps, context, hints, strength: float = 1.0
) -> torch.Tensor:
    """The UNet's prediction for x_t [B, 4, 8, 8] with what the ControlNet makes of the hints [B, 3, 64, 64] added, as
    ComfyUI does it.

    ComfyUI adds in place. In this UNet no middle block stands between the last skip and the way up, so both are one
    tensor there, and what is for either of them goes to both.
    """
    (first, last), middle = net(x, timesteps, context, hints, conditioning_scale=strength, return_dict=False)
    both = last + middle
    return unet(
        x, timesteps, context, down_block_additional_residuals=(first, both), mid_block_additional_residual=both
    ).sample
