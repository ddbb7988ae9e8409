"""A tiny SDXL that draws the world's shapes, and a MuLan adapter for it: trained narrow, written as ComfyUI loads it.

The UNet is the smallest that ComfyUI takes for SDXL (KOALA's depths at one level). Its own text encoders, narrow CLIP-L
and CLIP-G, are needed in training only: they would be 1.4 GB of zeros in a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from mulan_nodes.mulan.conditioning.adapter import AdapterShape
from mulan_nodes.mulan.conditioning.adapter_sdxl import AdapterShapeXL
from mulan_nodes.mulan.tiny_models import full_width
from mulan_nodes.mulan.tiny_models.full_width import AUTOENCODER, UNET, Axis, Layout, Tensors
from mulan_nodes.mulan.tiny_models.packs import pack_path, read_pack
from mulan_nodes.mulan.training.adapters import SIZE_CHANNELS, SIZES, TwoAdapters

from .. import graphs
from . import narrow
from .pack import with_queries

CHANNELS, HEADS, HEAD_CHANNELS = 64, 4, 64  # of 320 channels, of 5 heads; of a published head
FIRST, SECOND = 144, 96  # of the 1280 and 768 channels of an adapter's halves
CLIP_L, CLIP_G = 96, 144  # of the 768 and 1280 of its own text encoders
POOLED = FIRST
LATENT_SCALE = 0.13025  # SDXL's
CFG = 2.0
PACK = Path(__file__).with_name("sdxl.safetensors.gz")
CHECKPOINT, ADAPTER = "tiny_sdxl.safetensors", "tiny_sdxl_adapter.safetensors"

UNET_SHAPE: dict[str, Any] = dict(
    image_size=8,
    in_channels=4,
    out_channels=4,
    model_channels=CHANNELS,
    num_res_blocks=[3],
    channel_mult=[1],
    num_head_channels=CHANNELS // HEADS,
    use_spatial_transformer=True,
    use_linear_in_transformer=True,
    legacy=False,
    transformer_depth=[0, 2, 5],
    transformer_depth_output=[0, 0, 1, 1],
    transformer_depth_middle=-2,
    context_dim=FIRST + SECOND,
    num_classes="sequential",
    adm_in_channels=POOLED + SIZES * SIZE_CHANNELS,
    dtype=torch.float32,
)

# SDXL's own encoders stand in its context as 768 + 1280 channels, an adapter's halves as 1280 + 768: both have their
# live ones here.
_HALF = Axis(torch.tensor([*range(CLIP_L), *range(768, 768 + FIRST - CLIP_L)]), 1280)
CONTEXT = Axis(torch.cat([_HALF.live, torch.arange(1280, 1280 + SECOND)]), 2048)
VECTOR = Axis(torch.tensor([*range(POOLED), *range(1280, 2816)]), 2816)  # pooled text, then the sizes' sinusoids


def unet() -> nn.Module:
    """SDXL's UNet, 64 of 320 channels wide: ComfyUI's class with padded norms. Needs ComfyUI's folder on the path."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    model: Any = UNetModel(**UNET_SHAPE, operations=comfy.ops.disable_weight_init)
    for module in model.modules():  # which ComfyUI's classes leave as memory was
        if isinstance(module, nn.Linear):
            nn.Linear.reset_parameters(module)
        elif isinstance(module, nn.Conv2d):
            nn.Conv2d.reset_parameters(module)
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    model.model_channels = narrow.UNET_FULL_WIDTH  # of the timestep's sinusoids
    model.time_embed[0] = nn.Linear(narrow.UNET_FULL_WIDTH, 4 * CHANNELS)
    narrow.pad_norms(model, narrow.UNET_FULL_WIDTH // CHANNELS)
    return model


def adapter() -> TwoAdapters:
    """MuLan's adapter for SDXL of the layout noembed_attnpool, narrow."""
    halves = [
        AdapterShape(narrow.TEXT_WIDTH, context_dim=width, num_queries=narrow.QUERIES, intermediate_size=2 * width)
        for width in (FIRST, SECOND)
    ]
    model = TwoAdapters(AdapterShapeXL(*halves, pooled_dim=POOLED, text_embeds_dim=None), embeds=False)
    narrow.pad_norms(model.adapter1, 1280 / FIRST)
    narrow.pad_norms(model.adapter2, 768 / SECOND)
    return model


def gather(unet_tensors: Mapping[str, torch.Tensor], adapter_tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Narrow tensors, the adapter's under published names -> the pack's."""
    tensors = {UNET + name: tensor for name, tensor in unet_tensors.items()}
    tensors |= {full_width.ADAPTER + name: tensor for name, tensor in adapter_tensors.items()}
    return {name: _as_published(name, tensor) for name, tensor in tensors.items()}


def _as_published(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Queries make up for the published heads' width, by whose square root attention divides."""
    if not any(part in name for part in (".to_q.", ".q_proj.", ".in_proj_")):
        return tensor
    if name.startswith(UNET):
        full, live = HEADS * HEAD_CHANNELS, CHANNELS
    elif "pool_caption" in name:
        full, live = CONTEXT.full, FIRST + SECOND
    else:
        full, live = (1280, FIRST) if "adapter1" in name else (768, SECOND)
    return with_queries(name, tensor, math.sqrt(full / live))


def _widen(name: str, tensor: torch.Tensor) -> torch.Tensor:
    known = full_width.layouts()
    if name.startswith(UNET):
        by_length = {**known[UNET].by_length, FIRST + SECOND: CONTEXT, len(VECTOR.live): VECTOR}
        heads = Axis.blocks(5, CHANNELS // HEADS, HEAD_CHANNELS, HEADS)
        layout = replace(known[UNET], by_length=by_length, heads=heads)
    elif "pool_caption" in name:
        layout = Layout(
            by_length={FIRST + SECOND: CONTEXT, POOLED: Axis.first(POOLED, 1280)},
            heads=Axis.blocks(8, (FIRST + SECOND) // 8, 256),
            into_heads=("q_proj", "k_proj", "v_proj"),
            out_of_heads=("c_proj",),
        )
    else:
        live, channels = (FIRST, _HALF) if "adapter1" in name else (SECOND, Axis.first(SECOND, 768))
        by_length = {live: channels, 2 * live: Axis.first(2 * live, 4 * channels.full)}
        heads = Axis.blocks(8, live // 8, channels.full // 8)
        layout = replace(known[full_width.ADAPTER], by_length=by_length, heads=heads)
    return layout.widen(name, tensor)


def checkpoint_of(stored: Mapping[str, torch.Tensor]) -> Tensors:
    """A pack's tensors -> an SDXL checkpoint without text encoders, its autoencoder that of the tiny SD1.5."""
    tensors = {name: _widen(name, tensor) for name, tensor in stored.items() if name.startswith(UNET)}
    tiny_sd15 = full_width.checkpoint(read_pack(pack_path("world"))[0])
    tensors |= {name: tensor for name, tensor in tiny_sd15.items() if name.startswith(AUTOENCODER)}
    return tensors | {f"{AUTOENCODER}vae_scale": torch.tensor(LATENT_SCALE)}


def adapter_of(stored: Mapping[str, torch.Tensor]) -> Tensors:
    """A pack's tensors -> the adapter under its published names."""
    prefix = full_width.ADAPTER
    return {name.removeprefix(prefix): _widen(name, stored[name]) for name in stored if name.startswith(prefix)}


def write_models(models: Path) -> None:
    """Write both files below a ComfyUI's models folder."""
    stored, _ = read_pack(PACK)
    save_file(checkpoint_of(stored), models / "checkpoints" / CHECKPOINT)
    save_file(adapter_of(stored), models / "mulan" / ADAPTER)


def graph(text_to_image: Mapping[str, Any]) -> dict[str, Any]:
    """The graph of text to image with the tiny SDXL, which guidance of 4, that of the tiny SD1.5, distorts."""
    changed = graphs.change(dict(text_to_image), "CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    return graphs.change(graphs.change(changed, "MuLan Loader", adapter=ADAPTER), "KSampler", cfg=CFG)
