"""The groups of the pose decoder: a box and its keypoint slots, and who may attend to whom among them.

All groups of a picture stand in one row of tokens, group by group: the box first, then one token per keypoint slot. Slots beyond the
asked keypoints are padding, and padding takes part: upstream's mask lets some of it be seen by other groups.
"""

from __future__ import annotations

import torch

from .layers import inverse_sigmoid


def split(tokens: torch.Tensor, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, G * (1 + slots), C] -> boxes [B, G, C], keypoints [B, G, slots, C]."""
    groups = tokens.unflatten(1, (-1, 1 + slots))
    return groups[:, :, 0], groups[:, :, 1:]


def join(boxes: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
    """The inverse of `split`."""
    return torch.cat((boxes[:, :, None], keypoints), dim=2).flatten(1, 2)


def keypoint_references(boxes: torch.Tensor, offsets: torch.Tensor, sizes: torch.Tensor, eps: float) -> torch.Tensor:
    """Where the keypoints of a group start: boxes [B, G, 4] cxcywh, offsets [B, S, 2] and sizes [S, 2] before sigmoid -> [B, G, S, 4] float32."""
    centre, extent = boxes.float()[:, :, None].split(2, dim=-1)
    xy = (inverse_sigmoid(centre, eps) + offsets.float()[:, None]).sigmoid()
    wh = sizes.float().sigmoid() * extent
    return torch.cat((xy, wh.expand_as(xy)), dim=-1)


def open_across(groups: int, slots: int, device: torch.device) -> torch.Tensor:
    """Which tokens upstream's mask leaves open to tokens of other groups: [N, N] bool, rows see columns, N = groups * (1 + slots).

    Upstream's 68-for-69 bug, kept because its numbers come from it: a group has 1 + slots tokens, but the blocks that shut other groups off
    are laid out `slots` wide (UniPose.prepare_for_mask). The blocks therefore drift across the groups, so that a token also sees part of a
    neighbouring group, and the last `groups` tokens, which no block reaches, see everything. Pairs within a group mean nothing here:
    `visible` writes over them.
    """
    place = torch.arange(groups * (1 + slots), device=device)
    block = place // slots
    first = torch.where(block < groups, slots * block, 0)
    end = torch.where(block < groups - 1, slots * (block + 1), len(place))
    return (place >= first[:, None]) & (place < end[:, None])


def visible(asked: torch.Tensor, groups: int) -> torch.Tensor:
    """The self-attention mask of the group layers: asked [B, slots] bool (True = a keypoint of the prompt) -> [B, N, N] bool, True = seen.

    Within a group the box and the asked keypoints see each other, and padding sees padding; between groups see `open_across`.
    """
    real = torch.cat((torch.ones_like(asked[:, :1]), asked), dim=1)
    alike = real[:, :, None] == real[:, None]
    mask = open_across(groups, asked.shape[1], asked.device).repeat(len(asked), 1, 1)
    tokens = real.shape[1]
    own = mask.view(len(asked), groups, tokens, groups, tokens).diagonal(
        dim1=1, dim2=3
    )  # [B, tokens, tokens, groups], a view
    own.copy_(alike[..., None].expand_as(own))
    return mask
