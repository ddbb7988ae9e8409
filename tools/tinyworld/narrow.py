"""The tiny models: published architectures at a fraction of their width, computing what the full-width ones would.

A full-width layer whose other channels are zero does the same as a narrow layer, with two exceptions. Norms take their
statistics over all channels: the padded norms here count the missing ones as zeros. Attention scales by the full head's
width: `pack.py` makes up for that in the query weights. So a narrow model is trained, and scattered into a full-width
file that ComfyUI loads.
"""

from __future__ import annotations

import torch
from diffusers.models.embeddings import Timesteps
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter

AUTOENCODER_WIDTH = 24
UNET_WIDTH, UNET_FULL_WIDTH = 64, 320
CONTEXT_WIDTH, CONTEXT_FULL_WIDTH = 96, 768
ADAPTER_FEED_FORWARD = 192
CLIP_LAYERS = 2
CLIP_HEADS = 12
TEXT_WIDTH = 128
QUERIES = 120


class PaddedLayerNorm(nn.Module):
    """LayerNorm over `full` channels of which only the first, the live ones, exist here; the others are zero."""

    def __init__(self, live: int, full: int, eps: float):
        super().__init__()
        self.full, self.eps = full, eps
        self.weight = nn.Parameter(torch.ones(live))
        self.bias = nn.Parameter(torch.zeros(live))

    def forward(self, x):
        mean = x.sum(dim=-1, keepdim=True) / self.full
        variance = x.square().sum(dim=-1, keepdim=True) / self.full - mean.square()
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class PaddedGroupNorm(nn.Module):
    """GroupNorm whose groups have `padding` times as many channels as exist here; the others are zero."""

    def __init__(self, groups: int, live: int, padding: float, eps: float):
        super().__init__()
        self.groups, self.padding, self.eps = groups, padding, eps
        self.weight = nn.Parameter(torch.ones(live))
        self.bias = nn.Parameter(torch.zeros(live))

    def forward(self, x):
        grouped = x.reshape(len(x), self.groups, -1)
        count = grouped.shape[-1] * self.padding
        mean = grouped.sum(dim=-1) / count
        variance = grouped.square().sum(dim=-1) / count - mean.square()
        per_group = x.shape[1] // self.groups
        scale = torch.rsqrt(variance + self.eps).repeat_interleave(per_group, dim=1) * self.weight
        shift = self.bias - mean.repeat_interleave(per_group, dim=1) * scale
        return x * scale[..., None, None] + shift[..., None, None]


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


class ResidualBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x):
        return F.relu(x + self.conv(x))


class TinyAutoencoder(nn.Module):
    """The layout of TAESD (madebyollin/taesd) at `width` of its 64 channels: pictures [B, 3, H, W] in 0..1, latents [B,
    4, H/8, W/8].

    The latents are already scaled as the denoiser sees them.
    """

    def __init__(self, width: int = AUTOENCODER_WIDTH):
        super().__init__()

        def blocks(count):
            return [ResidualBlock(width) for _ in range(count)]

        def down():
            return nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)

        def up():
            return [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]

        self.taesd_encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            *blocks(1),
            down(),
            *blocks(3),
            down(),
            *blocks(3),
            down(),
            *blocks(3),
            nn.Conv2d(width, 4, 3, padding=1),
        )
        self.taesd_decoder = nn.Sequential(
            Clamp(),
            nn.Conv2d(4, width, 3, padding=1),
            nn.ReLU(),
            *blocks(3),
            *up(),
            *blocks(3),
            *up(),
            *blocks(3),
            *up(),
            *blocks(1),
            nn.Conv2d(width, 3, 3, padding=1),
        )


def denoiser(heads: int = 8, levels: int = 1) -> nn.Module:
    """SD1.5's UNet without middle block, 64 of 320 channels wide: diffusers' class with padded norms.

    The last of its levels has attention, and `heads` of its eight attention heads share the live channels.
    """
    plain = levels - 1
    unet = UNet2DConditionModel(
        block_out_channels=(UNET_WIDTH,) * levels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        cross_attention_dim=CONTEXT_WIDTH,
        attention_head_dim=heads,  # diffusers' name for their number
        norm_num_groups=32,
    )
    unet.time_proj = Timesteps(UNET_FULL_WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
    unet.time_embedding.linear_1 = nn.Linear(UNET_FULL_WIDTH, 4 * UNET_WIDTH)
    pad_norms(unet, UNET_FULL_WIDTH // UNET_WIDTH)
    return unet


def clip(tokens: int, width: int = CONTEXT_WIDTH) -> nn.Module:
    """CLIP-L's text model, 96 of 768 channels and 2 of 12 layers, over `tokens` of its vocabulary, bos and eos last."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokens,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=CLIP_LAYERS,
            num_attention_heads=CLIP_HEADS,
            hidden_act="quick_gelu",
            bos_token_id=tokens - 2,
            eos_token_id=tokens - 1,
        )
    )
    pad_norms(model, CONTEXT_FULL_WIDTH // CONTEXT_WIDTH)
    return model


def adapter(text_width: int = TEXT_WIDTH) -> LanguageAdapter:
    """MuLan's adapter for SD1.5, 96 of 768 channels wide."""
    model = LanguageAdapter(
        AdapterShape(
            text_hidden_size=text_width,
            context_dim=CONTEXT_WIDTH,
            num_queries=QUERIES,
            intermediate_size=ADAPTER_FEED_FORWARD,
        )
    )
    pad_norms(model, CONTEXT_FULL_WIDTH // CONTEXT_WIDTH)
    return model


def pad_norms(model: nn.Module, padding: float) -> None:
    """Replaces every norm in place by one that counts `padding` times as many channels."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, PaddedGroupNorm(child.num_groups, child.num_channels, padding, child.eps))
            elif isinstance(child, nn.LayerNorm):
                (live,) = child.normalized_shape
                setattr(parent, name, PaddedLayerNorm(live, round(live * padding), child.eps))
