"""Prompts of labeled regions: their lines in a text, their masks from labeled boxes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import ndimage

from ...mulan.boundary.interrupts import interruptible
from ...mulan.boundary.limits import MAX_PROMPTS
from ...mulan.boundary.texts import split_lines
from .masks import boxes_to_masks, check_mask_pixels, split_masks_per_image
from .names import name_key

# A colon with a space behind it, or a full-width one: "16:9" and "(red:1.2)" are no labels
_LABEL = re.compile(r"(?P<label>[^:：]+)(?::(?=\s)|：)(?P<prompt>.*)")


@dataclass(frozen=True)
class RegionPrompts:
    """The prompt of the whole image, and a prompt for each label as it was written."""

    whole: str
    of_label: dict[str, str]


def read_region_prompts(text: str) -> RegionPrompts:
    """Read `label: prompt` lines; all others are the whole image's.

    Raises ValueError for a label without a prompt, one that has two, and too many.
    """
    whole, of_label = [], {}
    for line in split_lines(text):
        match = _LABEL.fullmatch(line)
        if match is None:
            whole.append(line)
            continue
        label, prompt = match["label"].strip(), match["prompt"].strip()
        if not prompt:
            raise ValueError(f"the label {label[:40]!r} has no prompt")
        if name_key(label) in map(name_key, of_label):
            raise ValueError(f"the label {label[:40]!r} has two prompts. Write them in one line")
        of_label[label] = prompt
    if len(of_label) >= MAX_PROMPTS:
        raise ValueError(f"there are {len(of_label)} labels, and at most {MAX_PROMPTS - 1} are encoded at once")
    return RegionPrompts(" ".join(whole), of_label)


def label_masks(
    frames: Sequence[Sequence[dict]], height: int, width: int, masks: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Return the mask [B, H, W] of each label among the boxes of B images, in their order; equal labels share one.

    masks [N, h, w]: of the boxes of all images, in their order; without them boxes are filled. A box without a label
    has the name region1, region2, ..., its place in its image.
    """
    labels: dict[str, str] = {}
    for boxes in frames:
        for number, box in enumerate(boxes, 1):
            name = box.get("label") or f"region{number}"
            labels.setdefault(name_key(name), name)
    check_mask_pixels(len(labels) * len(frames), height, width)
    if masks is None:
        masks = boxes_to_masks(frames, height, width)[1]
    per_image = split_masks_per_image(masks, frames, (height, width))
    found = {name: torch.zeros(len(frames), height, width) for name in labels.values()}
    for index, (boxes, of_image) in enumerate(interruptible(zip(frames, per_image, strict=True))):
        for number, (box, mask) in enumerate(zip(boxes, of_image, strict=True), 1):
            target = found[labels[name_key(box.get("label") or f"region{number}")]][index]
            torch.maximum(target, mask.to(target), out=target)
    return found


def match_labels(wanted: Sequence[str], labels: Sequence[str]) -> dict[str, str | None]:
    """Return, for each wanted label, the one of `labels` that it means: case and punctuation do not matter."""
    known = {name_key(label): label for label in labels}
    return {label: known.get(name_key(label)) for label in wanted}


def soften(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Return a mask [B, H, W] that falls to 0 within so many pixels outside of its areas."""
    if not pixels:
        return mask
    soft = [
        torch.from_numpy(ndimage.distance_transform_edt(each.numpy() == 0))
        if each.any()
        else torch.full_like(each, pixels + 1)
        for each in interruptible(mask)
    ]
    return torch.maximum(mask, (1 - torch.stack(soft).float() / (pixels + 1)).clamp(min=0))
