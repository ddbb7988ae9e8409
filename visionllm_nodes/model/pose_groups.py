"""The groups of the pose decoder: a box and its keypoint slots, and which of them attend to which.

All groups of an image stand in one row of tokens, group by group: the box first, then one token per keypoint slot.
Slots beyond the prompt's keypoints are padding, and padding takes part: upstream's mask lets some of it be seen by
other groups.
"""

from __future__ import annotations

import torch

from .layers import inverse_sigmoid


def split(tokens: torch.Tensor, num_slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Part the tokens: [B, G * (1 + slots), C] -> boxes [B, G, C], keypoints [B, G, slots, C]."""
    groups = tokens.unflatten(1, (-1, 1 + num_slots))
    return groups[:, :, 0], groups[:, :, 1:]


def join(boxes: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
    """Return the inverse of `split`."""
    return torch.cat((boxes[:, :, None], keypoints), dim=2).flatten(1, 2)


def keypoint_references(boxes: torch.Tensor, offsets: torch.Tensor, sizes: torch.Tensor, eps: float) -> torch.Tensor:
    """Return where the keypoints of a group start, float32 [B, G, S, 4].

    boxes [B, G, 4] cxcywh; offsets [B, S, 2] and sizes [S, 2] before sigmoid.
    """
    center, extent = boxes.float()[:, :, None].split(2, dim=-1)
    xy = (inverse_sigmoid(center, eps) + offsets.float()[:, None]).sigmoid()
    wh = sizes.float().sigmoid() * extent
    return torch.cat((xy, wh.expand_as(xy)), dim=-1)


def cross_group_mask(num_groups: int, num_slots: int, device: torch.device) -> torch.Tensor:
    """Return which tokens upstream's mask leaves open to tokens of other groups.

    bool [N, N], rows see columns, N = groups * (1 + slots).

    Upstream's 68-for-69 bug, kept because its numbers come from it: a group has 1 + slots tokens, but the blocks that
    shut other groups off are laid out `num_slots` wide (UniPose.prepare_for_mask). The blocks therefore drift across
    the groups, so that a token also sees part of a neighboring group, and the last `num_groups` tokens, which no block
    reaches, see everything. Pairs within a group mean nothing here: `self_attention_mask` writes over them.
    """
    index = torch.arange(num_groups * (1 + num_slots), device=device)
    block = index // num_slots
    first = torch.where(block < num_groups, num_slots * block, 0)
    end = torch.where(block < num_groups - 1, num_slots * (block + 1), len(index))
    return (index >= first[:, None]) & (index < end[:, None])


def self_attention_mask(slot_mask: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Return the mask of the group layers, bool [B, N, N], True = seen.

    `slot_mask`: bool [B, slots], True for a keypoint of the prompt.

    Within a group the box and the prompt's keypoints see each other, and padding sees padding; between groups see
    `cross_group_mask`.
    """
    real = torch.cat((torch.ones_like(slot_mask[:, :1]), slot_mask), dim=1)
    alike = real[:, :, None] == real[:, None]
    batch, tokens = real.shape
    mask = cross_group_mask(num_groups, slot_mask.shape[1], slot_mask.device).repeat(batch, 1, 1)
    groups = mask.view(batch, num_groups, tokens, num_groups, tokens)
    own = groups.diagonal(dim1=1, dim2=3)  # [B, tokens, tokens, groups], a view
    own.copy_(alike[..., None].expand_as(own))
    return mask
