"""diffusers' models as the `Denoiser` that training and validation call; their weights stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .adapters import SIZES
from .diffusion import Context, Denoiser, as_context


class _Given(nn.Module):
    """In place of the UNet's size embedding: passes on what was embedded before, the first channels of its input."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return vector[:, : self.channels]


def plain_denoiser(unet: Any) -> Denoiser:
    """Return SD1.5's and SD2.1's."""

    def denoiser(x: torch.Tensor, t: torch.Tensor, context: Context | torch.Tensor) -> torch.Tensor:
        rows = as_context(context).rows.to(unet.dtype)
        return unet(x.to(unet.dtype), t, encoder_hidden_states=rows).sample.float()

    return denoiser


def sdxl_denoiser(unet: Any) -> tuple[Denoiser, nn.Module]:
    """Return SDXL's, and the UNet's size embedding, which an adapter's own may stand in for."""
    own = unet.add_embedding
    unet.add_embedding = _Given(own.linear_2.out_features)

    def denoiser(x: torch.Tensor, t: torch.Tensor, context: Context | torch.Tensor) -> torch.Tensor:
        given = as_context(context)
        embedding = given.embedding
        if embedding is None:
            assert given.vector is not None, "what TwoAdapters gives"  # noqa: S101
            embedding = own(given.vector.to(unet.dtype))
        added = {"text_embeds": embedding.to(unet.dtype), "time_ids": x.new_zeros(len(x), SIZES)}
        rows = given.rows.to(unet.dtype)
        return unet(x.to(unet.dtype), t, encoder_hidden_states=rows, added_cond_kwargs=added).sample.float()

    return denoiser, own


def pixart_denoiser(transformer: Any, downscale_factor: int) -> Denoiser:
    """Return PixArt's, which reads projected captions; what it says of its variance is left out.

    Alpha at 1024 pixels also reads the image's size and aspect ratio, which the latents tell.
    """
    transformer.caption_projection = nn.Identity()
    dtype, in_channels = transformer.dtype, transformer.config.in_channels

    def denoiser(x: torch.Tensor, t: torch.Tensor, context: Context | torch.Tensor) -> torch.Tensor:
        given = as_context(context)
        added: dict[str, torch.Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if transformer.use_additional_conditions:
            height, width = (side * downscale_factor for side in x.shape[-2:])
            size = torch.tensor([[height, width]], dtype=torch.float32, device=x.device)
            added = {
                "resolution": size.expand(len(x), 2),
                "aspect_ratio": (size[:, :1] / size[:, 1:]).expand(len(x), 1),
            }
        predicted = transformer(
            x.to(dtype),
            encoder_hidden_states=given.rows.to(dtype),
            timestep=t,
            added_cond_kwargs=added,
            encoder_attention_mask=None if given.mask is None else given.mask.to(dtype),
        ).sample
        return predicted[:, :in_channels].float()

    return denoiser
