"""A tiny PixArt-Sigma that draws the world's shapes, and a MuLan adapter for it: trained narrow, written as ComfyUI
loads it.

ComfyUI's class divides by zero where an image is smaller than 264 pixels, and takes no other width than 1152: so the
pictures have 272 pixels, and 128 of the 1152 channels are live. The others hold their share of the positions' sinusoids
from the first layer to the last, and norms count them. The transformer's own T5 is a narrow CLIP here, which only its
training needs. The text encoder is that of the tiny SD1.5, 128 of the 4096 channels wide that PixArt's captions have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from mulan_nodes.mulan.checkpoints.tensor_files import CONFIG
from mulan_nodes.mulan.tiny_models import full_width
from mulan_nodes.mulan.tiny_models.full_width import AUTOENCODER, UNET, Axis, Tensors, scatter
from mulan_nodes.mulan.tiny_models.packs import pack_path, read_pack
from mulan_nodes.mulan.training.adapters import Projection
from mulan_nodes.mulan.training.diffusion import Context

from .. import graphs
from . import narrow, text_training

SIDE = 272  # pixels
PATCHES, POSITIONS = SIDE // 16, 32  # patches along a side, and what ComfyUI counts along one
WIDTH, HEADS, DEPTH = 128, 4, 4
FULL_WIDTH, FULL_HEADS, FULL_HEAD = 1152, 16, 72
CAPTIONS, FULL_CAPTIONS = narrow.CONTEXT_WIDTH, 4096  # the channels of its own captions
INNER, FULL_INNER = 256, 4 * FULL_WIDTH  # of the feed-forward layers
CHANNELS = 4  # of latents; the published layers predict as many variances beside the noise
STEPS_EMBEDDED = 256
LATENT_SCALE = 0.13025  # SDXL's, which PixArt-Sigma shares
CFG = 3.0
PACK = Path(__file__).with_name("pixart.safetensors.gz")
CHECKPOINT, TEXT_ENCODER = "tiny_pixart.safetensors", "tiny_pixart_text.safetensors"
ADAPTER = "tiny_pixart_adapter.safetensors"

# Sinusoids of a quarter of the channels each, sines before cosines, along x before along y. Places are told by the
# frequencies below 60; the sines of the last are nearly zero everywhere.
_QUARTER = FULL_WIDTH // 4
_TOLD = torch.arange(0, 60, 5)
_QUIET = torch.arange(_QUARTER - (WIDTH - 4 * len(_TOLD)) // 2, _QUARTER)
LIVE = torch.cat([*(_TOLD + quarter * _QUARTER for quarter in range(4)), _QUIET, _QUIET + 2 * _QUARTER])


def positions() -> torch.Tensor:
    """What ComfyUI adds to the patches of an image of `SIDE` pixels: [17 * 17, 1152]."""
    along = torch.arange(PATCHES, dtype=torch.float32) * (POSITIONS / PATCHES)
    rates = 10000 ** (-torch.arange(_QUARTER, dtype=torch.float64) / _QUARTER)
    angles = (along[:, None] * rates).float()
    of_one = torch.cat([angles.sin(), angles.cos()], dim=1)
    down, across = torch.meshgrid(torch.arange(PATCHES), torch.arange(PATCHES), indexing="ij")
    return torch.cat([of_one[across.flatten()], of_one[down.flatten()]], dim=1)


class PositionedNorm(nn.Module):
    """LayerNorm without weights over 1152 channels of which `WIDTH` are here; the others are the positions'."""

    def __init__(self, eps: float = 1e-6):
        super().__init__()
        others = positions()
        others[:, LIVE] = 0
        self.eps = eps
        self.sums: torch.Tensor
        self.squares: torch.Tensor
        self.register_buffer("sums", others.sum(1, keepdim=True), persistent=False)
        self.register_buffer("squares", others.square().sum(1, keepdim=True), persistent=False)

    def forward(self, x):
        mean = (x.sum(-1, keepdim=True) + self.sums) / FULL_WIDTH
        variance = (x.square().sum(-1, keepdim=True) + self.squares) / FULL_WIDTH - mean.square()
        return (x - mean) * torch.rsqrt(variance + self.eps)


def _attend(q, k, v, mask=None):
    """All [B, N, width] -> [B, N, width]; mask bool [B, rows of k]."""
    q, k, v = (rows.unflatten(-1, (HEADS, -1)).transpose(1, 2) for rows in (q, k, v))
    mask = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.proj(_attend(*self.qkv(x).chunk(3, dim=-1)))


class CrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_linear, self.kv_linear = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, rows, mask):
        k, v = self.kv_linear(rows).chunk(2, dim=-1)
        return self.proj(_attend(self.q_linear(x), k, v, mask))


class FeedForward(nn.Module):
    def __init__(self, in_dim: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(in_dim, inner), nn.Linear(inner, WIDTH)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = PositionedNorm()
        self.attn, self.cross_attn, self.mlp = SelfAttention(), CrossAttention(), FeedForward(WIDTH, INNER)
        self.scale_shift_table = nn.Parameter(torch.randn(6, WIDTH) / WIDTH**0.5)
        with torch.no_grad():
            self.scale_shift_table[[2, 5]] += 0.5  # gates: more than a deep transformer begins with

    def forward(self, x, rows, mask, time):
        """time [B, 6, width]."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + time)[:, :, None].unbind(1)
        x = x + gate * self.attn(self.norm(x) * (1 + scale) + shift)
        x = x + self.cross_attn(x, rows, mask)
        return x + gate_mlp * self.mlp(self.norm(x) * (1 + scale_mlp) + shift_mlp)


class Transformer(nn.Module):
    """PixArt-Sigma's transformer, narrow: x [B, 4, 34, 34], timesteps [B], and rows of captions [B, R, `CAPTIONS`], or
    already projected by an adapter [B, R, `WIDTH`] -> the noise.
    """

    def __init__(self):
        super().__init__()
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(CHANNELS, WIDTH, 2, stride=2)})
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(STEPS_EMBEDDED, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))}
        )
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        self.y_embedder = nn.ModuleDict({"y_proj": FeedForward(CAPTIONS, WIDTH)})
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.final_layer = nn.ModuleDict({"linear": nn.Linear(WIDTH, 4 * CHANNELS)})
        self.final_table = nn.Parameter(torch.randn(2, WIDTH) / WIDTH**0.5)
        self.norm = PositionedNorm()
        self.positions: torch.Tensor
        self.register_buffer("positions", positions()[:, LIVE], persistent=False)

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of captions -> what cross-attention reads, which an adapter gives in its place."""
        return self.y_embedder["y_proj"](rows)

    def forward(self, x, timesteps, context: Context):
        x = self.x_embedder["proj"](x).flatten(2).mT + self.positions
        rates = 10000 ** (-torch.arange(STEPS_EMBEDDED // 2, dtype=torch.float32) / (STEPS_EMBEDDED // 2))
        angles = timesteps[:, None].float() * rates
        time = self.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], dim=1))
        for_blocks = self.t_block(time).unflatten(1, (6, WIDTH))
        for block in self.blocks:
            x = block(x, context.rows, context.mask, for_blocks)
        shift, scale = (self.final_table + time[:, None])[:, :, None].unbind(1)
        x = self.final_layer["linear"](self.norm(x) * (1 + scale) + shift)
        x = x.unflatten(2, (2, 2, CHANNELS)).unflatten(1, (PATCHES, PATCHES))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def adapter() -> Projection:
    """MuLan's adapter for PixArt, narrow."""
    return Projection(narrow.TEXT_WIDTH, WIDTH)


def gather(transformer: Mapping[str, torch.Tensor], adapter_tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Narrow tensors -> the pack's, under their final names."""
    tensors = {UNET + name: tensor for name, tensor in transformer.items()}
    tensors[f"{UNET}final_layer.scale_shift_table"] = tensors.pop(f"{UNET}final_table")
    return tensors | {full_width.ADAPTER + name: tensor for name, tensor in adapter_tensors.items()}


_CHANNELS, _HEADS = Axis(LIVE, FULL_WIDTH), Axis.blocks(FULL_HEADS, WIDTH // HEADS, FULL_HEAD, HEADS)
_CAPTIONS, _INNER = Axis.first(CAPTIONS, FULL_CAPTIONS), Axis.first(INNER, FULL_INNER)
_TEXT = Axis.first(narrow.TEXT_WIDTH, FULL_CAPTIONS)
_NOISE = Axis(  # of a patch's four places, each with noise and variances
    (torch.arange(4)[:, None] * 2 * CHANNELS + torch.arange(CHANNELS)).flatten(), 4 * 2 * CHANNELS
)


def _times(axis: Axis, count: int) -> Axis:
    """`count` of the axis, one behind the other."""
    return Axis((torch.arange(count)[:, None] * axis.full + axis.live).flatten(), count * axis.full)


# Layers by the end of their names: where their outputs and their inputs stand; None: as they are
_LAYERS: dict[str, tuple[Axis, Axis | None]] = {
    "x_embedder.proj": (_CHANNELS, None),
    "t_embedder.mlp.0": (_CHANNELS, None),
    "t_embedder.mlp.2": (_CHANNELS, _CHANNELS),
    "t_block.1": (_times(_CHANNELS, 6), _CHANNELS),
    "y_proj.fc1": (_CHANNELS, _CAPTIONS),
    "y_proj.fc2": (_CHANNELS, _CHANNELS),
    "attn.qkv": (_times(_HEADS, 3), _CHANNELS),
    "q_linear": (_HEADS, _CHANNELS),
    "kv_linear": (_times(_HEADS, 2), _CHANNELS),
    "attn.proj": (_CHANNELS, _HEADS),
    "mlp.fc1": (_INNER, _CHANNELS),
    "mlp.fc2": (_CHANNELS, _INNER),
    "final_layer.linear": (_NOISE, _CHANNELS),
    "adapter.linear_1": (_CHANNELS, _TEXT),
    "adapter.linear_2": (_CHANNELS, _CHANNELS),
}


def _widen(name: str, tensor: torch.Tensor) -> torch.Tensor:
    layer, _, kind = name.rpartition(".")
    if kind == "scale_shift_table":
        return scatter(tensor, [Axis.first(len(tensor), len(tensor)), _CHANNELS])
    out_axis, in_axis = next(axes for end, axes in reversed(_LAYERS.items()) if layer.endswith(end))
    if ".attn.qkv" in name or ".q_linear" in name:  # makes up for the published heads' width
        tensor = torch.cat([tensor[:WIDTH] * math.sqrt(FULL_HEAD * HEADS / WIDTH), tensor[WIDTH:]])
    others = [Axis.first(length, length) for length in tensor.shape[1:]]
    return scatter(tensor, [out_axis, *([in_axis, *others[1:]] if in_axis and others else others)])


def checkpoint_of(stored: Mapping[str, torch.Tensor]) -> Tensors:
    """A pack's tensors -> a PixArt-Sigma checkpoint without T5, its autoencoder that of the tiny SD1.5."""
    tensors = {name: _widen(name, tensor) for name, tensor in stored.items() if name.startswith(UNET)}
    tensors[f"{UNET}y_embedder.y_embedding"] = torch.zeros(300, FULL_CAPTIONS)
    tiny_sd15 = full_width.checkpoint(read_pack(pack_path("world"))[0])
    vae = {f"vae.{n.removeprefix(AUTOENCODER)}": t for n, t in tiny_sd15.items() if n.startswith(AUTOENCODER)}
    return tensors | vae | {"vae.vae_scale": torch.tensor(LATENT_SCALE)}


def adapter_of(stored: Mapping[str, torch.Tensor]) -> Tensors:
    """A pack's tensors -> the adapter under its published names."""
    prefix = full_width.ADAPTER
    return {name.removeprefix(prefix): _widen(name, stored[name]) for name in stored if name.startswith(prefix)}


def text_encoder_of(packed: Mapping[str, torch.Tensor]) -> Tensors:
    """The tiny text encoder's tensors -> the same encoder 4096 channels wide, float16, for `TEXT_CONFIG`.

    Its heads keep their number, so they are 32 times as wide, and every 32nd of their channels turns as fast with the
    position as the narrow head's do.
    """
    heads, apart = text_training.HEADS, FULL_CAPTIONS // narrow.TEXT_WIDTH
    of_head = torch.arange(0, FULL_CAPTIONS // heads, apart)
    in_heads = Axis((torch.arange(heads)[:, None] * (FULL_CAPTIONS // heads) + of_head).flatten(), FULL_CAPTIONS)
    tensors = {}
    for name, tensor in full_width.text_encoder(packed).items():
        if name == "spiece_model":
            tensors[name] = tensor
            continue
        axes = [_TEXT if length == narrow.TEXT_WIDTH else Axis.first(length, length) for length in tensor.shape]
        if any(f".{part}_proj." in name for part in "qkv"):
            axes[0] = in_heads
        if ".o_proj." in name:
            axes[1] = in_heads
        scale = 1.0
        if ".q_proj." in name:
            scale = math.sqrt(apart)  # for the published heads' width
        elif tensor.ndim == 1:
            scale = 1 / math.sqrt(apart)  # norms count the channels that are zero
        tensors[name] = scatter(tensor.float() * scale, axes).half()
    return tensors


TEXT_CONFIG = {"num_attention_heads": text_training.HEADS, "rms_norm_eps": 1e-6 * narrow.TEXT_WIDTH / FULL_CAPTIONS}


def write_models(models: Path) -> None:
    """Write the three files below a ComfyUI's models folder."""
    stored, _ = read_pack(PACK)
    save_file(checkpoint_of(stored), models / "checkpoints" / CHECKPOINT)
    save_file(adapter_of(stored), models / "mulan" / ADAPTER)
    config = {CONFIG: json.dumps(TEXT_CONFIG)}
    save_file(text_encoder_of(read_pack(pack_path("world"))[0]), models / "text_encoders" / TEXT_ENCODER, config)


def graph(text_to_image: Mapping[str, Any]) -> dict[str, Any]:
    """The graph of text to image with the tiny PixArt."""
    changed = graphs.change(dict(text_to_image), "CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    changed = graphs.change(changed, "MuLan Loader", adapter=ADAPTER, text_encoder=TEXT_ENCODER)
    changed = graphs.change(changed, "EmptyLatentImage", width=SIDE, height=SIDE)
    return graphs.change(changed, "KSampler", cfg=CFG)
