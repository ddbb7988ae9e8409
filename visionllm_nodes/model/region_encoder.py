"""A region of the picture (a mask) -> one embedding for the language model, in the place of its `<region>` token.

Source: VisionLLMv2/visionllmv2/model/region_encoder. Upstream averages samples at the mask's pixels and draws 2304 of them where there are more;
here it is the mean over all pixels, which those draws approximate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

EPS = 1e-6
STRIDES = 7, 2


@dataclass(frozen=True)
class RegionConfig:
    widths: tuple[int, int]  # between the three convolutions
    width: int  # of the vision tower
    out_width: int  # of the language model


def sampling_weights(pixels: int, cells: int, device=None) -> torch.Tensor:
    """[pixels, cells] float32: how much of each cell a bilinear sample at a pixel's upper left corner takes; zeros outside."""
    place = torch.arange(pixels, dtype=torch.float32, device=device) / pixels * cells - 0.5
    return (1 - (place[:, None] - torch.arange(cells, dtype=torch.float32, device=device)).abs()).clamp(min=0)


def region_weights(masks: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """masks bool [R, H, W] -> float32 [R, rows, columns]: the share of each cell in the mean of all samples of a region; zeros where it is empty."""
    inside = masks.float()
    down, across = (
        sampling_weights(pixels, cells, masks.device) for pixels, cells in zip(masks.shape[1:], (rows, columns))
    )
    return down.T @ inside @ across / inside.sum((1, 2), keepdim=True).clamp(min=1)


class RegionEncoder(nn.Module):
    def __init__(self, config: RegionConfig, *, operations, dtype=None, device=None):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.conv1 = operations.Conv2d(4, config.widths[0], STRIDES[0], stride=STRIDES[0], **kw)
        self.norm1 = operations.LayerNorm(config.widths[0], eps=EPS, **kw)
        self.conv2 = operations.Conv2d(config.widths[0], config.widths[1], STRIDES[1], stride=STRIDES[1], **kw)
        self.norm2 = operations.LayerNorm(config.widths[1], eps=EPS, **kw)
        self.conv3 = operations.Conv2d(config.widths[1], config.width, 1, **kw)
        self.out = operations.Linear(config.width, config.out_width, **kw)

    def forward(self, images, masks, features):
        """images [R, 3, S, S] normalised as the vision tower's, masks bool [R, 1, S, S], features: the tower's last three states
        [R, (S / 14)^2, width] each, first the third from the end -> [R, out_width]. An empty region gives the last layer's bias."""
        x = torch.cat((images, masks.to(images)), dim=1)
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = F.gelu(norm(conv(x).movedim(1, -1))).movedim(-1, 1)
        x = self.conv3(x)
        rows, columns = x.shape[2:]
        level, total = x.flatten(2).transpose(1, 2).float(), 0
        for states in features:  # each level adds to those before it, and the levels are averaged
            level = level + states.float()
            total = total + level / len(features)
        weights = region_weights(masks[:, 0], rows, columns).flatten(1)
        return self.out(torch.einsum("rt,rtc->rc", weights, total).to(images))
