"""A region of the image (a mask) -> one embedding for the language model, in the place of its `<region>` token.

Source: VisionLLMv2/visionllmv2/model/region_encoder. Upstream averages samples at the mask's pixels and draws 2304 of
them where there are more; here it is the mean over all pixels, which those draws approximate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

EPS = 1e-6
STRIDES = 7, 2


@dataclass(frozen=True)
class RegionConfig:
    """Sizes of the region encoder."""

    channels: tuple[int, int]  # between the three convolutions
    vision_hidden_size: int  # the vision tower's
    hidden_size: int  # the language model's


def sampling_weights(pixels: int, cells: int, device: torch.device | None = None) -> torch.Tensor:
    """Return how much of each cell a bilinear sample at a pixel's upper left corner takes; zeros outside.

    float32 [pixels, cells].
    """
    positions = torch.arange(pixels, dtype=torch.float32, device=device) / pixels * cells - 0.5
    return (1 - (positions[:, None] - torch.arange(cells, dtype=torch.float32, device=device)).abs()).clamp(min=0)


def region_weights(masks: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return the share of each cell in the mean of all samples of a region; zeros where it is empty.

    masks bool [R, H, W] -> float32 [R, rows, columns].
    """
    inside = masks.float()
    down, across = (
        sampling_weights(pixels, cells, masks.device)
        for pixels, cells in zip(masks.shape[1:], (rows, columns), strict=True)
    )
    return down.T @ inside @ across / inside.sum((1, 2), keepdim=True).clamp(min=1)


class RegionEncoder(nn.Module):
    """Convolutions of the image with its mask, added to the vision tower's features and averaged within the mask."""

    def __init__(self, config: RegionConfig, *, operations: Any, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        first, second = config.channels
        self.mask_embedding = nn.ModuleList(
            [
                operations.Conv2d(4, first, STRIDES[0], stride=STRIDES[0], **kw),
                operations.LayerNorm(first, eps=EPS, **kw),
                nn.GELU(),
                operations.Conv2d(first, second, STRIDES[1], stride=STRIDES[1], **kw),
                operations.LayerNorm(second, eps=EPS, **kw),
                nn.GELU(),
                operations.Conv2d(second, config.vision_hidden_size, 1, **kw),
            ]
        )
        self.up_dim = operations.Linear(config.vision_hidden_size, config.hidden_size, **kw)

    def forward(self, images: torch.Tensor, masks: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return an embedding per region, [R, hidden_size]. An empty region gives the last layer's bias.

        images [R, 3, S, S] normalized as the vision tower's, masks bool [R, 1, S, S], features: the tower's last three
        hidden states [R, (S / 14)^2, vision_hidden_size] each, first the third from the end.
        """
        x = torch.cat((images, masks.to(images)), dim=1).movedim(1, -1)
        for layer in self.mask_embedding:
            x = layer(x.movedim(-1, 1)).movedim(1, -1) if isinstance(layer, nn.Conv2d) else layer(x)
        rows, columns = x.shape[1:3]
        level, total = x.flatten(1, 2).float(), torch.zeros((), device=x.device)
        for hidden_states in features:  # each level adds to those before it, and the levels are averaged
            level = level + hidden_states.float()
            total = total + level / len(features)
        weights = region_weights(masks[:, 0], rows, columns).flatten(1)
        return self.up_dim(torch.einsum("rt,rtc->rc", weights, total).to(images))
