"""What the tensors of a checkpoint in its authors' layout say about the model: what diffusers is to build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..checkpoints.weight_check import count_layers

Shapes = Mapping[str, tuple[int, ...]]
SD15_NUM_HEADS = 8
HEAD_DIM = 64
PIXART_NUM_HEADS = 16
PIXART_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "module.")
PIXART_MARKS = ("t_block.1.weight", "adaln_single.linear.weight")  # in the authors' layout, in diffusers'
_NEVER_USED = ("pos_embed", "y_embedder.y_embedding")
_NOT_EVERYWHERE = ("csize_embedder.", "ar_embedder.", *_NEVER_USED)  # sigma has no sizes


def original_config(unet: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's configuration of the form that diffusers reads."""
    parts = {"unet_config": {"params": unet}, "first_stage_config": {"params": {"ddconfig": vae}}}
    return {"model": {"params": parts}}


def without_prefix(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """Return what stands behind a prefix, under its name there."""
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def unet_config(shapes: Shapes) -> dict:
    """Read the original `unet_config` from the tensors. Raises KeyError for another model's.

    They do not tell heads: SD1.5 has 8, SD2.1 and SDXL heads of 64 channels.
    """
    levels, block = [[]], 1
    while any(f"input_blocks.{block}.0.{kind}.weight" in shapes for kind in ("op", "in_layers.0")):
        if f"input_blocks.{block}.0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append(f"input_blocks.{block}.")
        block += 1
    channels, in_channels = shapes["input_blocks.0.0.weight"][:2]
    attention = [level for level, blocks in enumerate(levels) if f"{blocks[0]}1.proj_in.weight" in shapes]
    first = f"{levels[attention[0] if attention else 0][0]}1."
    linear = len(shapes[f"{first}proj_in.weight"]) == 2
    depths = [max(1, count_layers(shapes, f"{blocks[0]}1.transformer_blocks.")) for blocks in levels]
    embedding = shapes.get("label_emb.0.0.weight")
    return {
        "in_channels": in_channels,
        "out_channels": shapes["out.2.weight"][0],
        "model_channels": channels,
        "channel_mult": [shapes[f"{blocks[0]}0.out_layers.3.weight"][0] // channels for blocks in levels],
        "num_res_blocks": len(levels[0]),
        "attention_resolutions": [2**level for level in attention],
        "transformer_depth": depths,
        "context_dim": shapes[f"{first}transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_in_transformer": linear,
        **({"num_head_channels": HEAD_DIM} if linear else {"num_heads": SD15_NUM_HEADS}),
        **({"num_classes": "sequential", "adm_in_channels": embedding[1]} if embedding else {}),
    }


def vae_config(shapes: Shapes) -> dict:
    """Read the original autoencoder's `ddconfig` from the tensors. Raises KeyError for another model's."""
    channels, in_channels = shapes["encoder.conv_in.weight"][:2]
    levels = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.down."))
    return {
        "in_channels": in_channels,
        "out_ch": shapes["decoder.conv_out.weight"][0],
        "ch": channels,
        "ch_mult": [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] // channels for level in range(levels)],
        "num_res_blocks": len({name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")}),
        "z_channels": shapes["decoder.conv_in.weight"][1],
    }


def pixart_prefix(shapes: Shapes) -> str | None:
    """Return what stands before the names of a PixArt transformer; None for another model."""
    return next((p for p in PIXART_PREFIXES for mark in PIXART_MARKS if f"{p}{mark}" in shapes), None)


def pixart_config(shapes: Shapes, side: int) -> dict[str, Any]:
    """Return what diffusers' PixArtTransformer2DModel of these tensors, in its own names, is built with.

    `side`, of the latents, is taken where the file has no table of positions: its rows say which it was trained with.
    Raises KeyError where a tensor is missing.
    """
    width, in_channels, patch_size, _ = shapes["pos_embed.proj.weight"]
    return {
        "num_attention_heads": PIXART_NUM_HEADS,
        "attention_head_dim": width // PIXART_NUM_HEADS,
        "in_channels": in_channels,
        "out_channels": shapes["proj_out.weight"][0] // patch_size**2,
        "num_layers": count_layers(shapes, "transformer_blocks."),
        "cross_attention_dim": width,
        "sample_size": side,
        "patch_size": patch_size,
        "use_additional_conditions": "adaln_single.emb.resolution_embedder.linear_1.weight" in shapes,
        "caption_channels": shapes["caption_projection.linear_1.weight"][1],
    }


def pixart_side(table: tuple[int, ...] | None, side: int) -> int:
    """Return the side of the latents that a transformer was trained with, from the shape of its table of positions."""
    return side if table is None else 2 * round(table[1] ** 0.5)


def pixart_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a PixArt transformer's tensors, whose prefix is cut, to diffusers' names; packed ones are cut.

    Raises KeyError where a tensor is missing.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if name not in _NEVER_USED}
    if PIXART_MARKS[1] in tensors:
        return tensors
    import comfy.utils  # ComfyUI's own table of both layouts

    depth, width = count_layers(tensors, "blocks."), len(tensors["x_embedder.proj.bias"])
    named: dict[str, torch.Tensor] = {}
    for name, source in comfy.utils.pixart_to_diffusers({"depth": depth, "hidden_size": width}).items():
        if isinstance(source, str):
            if source in tensors or not source.startswith(_NOT_EVERYWHERE):
                named[name] = tensors[source]
        else:
            packed, (dimension, start, length) = source
            named[name] = tensors[packed].narrow(dimension, start, length)
    return named
