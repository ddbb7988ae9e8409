"""An image held against a checklist: which items hold, and which pixels to draw anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from .bounding_boxes import box_score, pixel_bounds
from .checklist import Item, Question, Thing, things_of
from .masks import MASK_THRESHOLD
from .names import name_key


@dataclass(frozen=True)
class Verdict:
    """Whether an item of the checklist holds, and what was seen: the number of objects, or the answer."""

    item: Item
    holds: bool
    seen: str

    @property
    def text(self) -> str:
        if isinstance(self.item, Question):
            return f"{self.item.line} → {self.seen or '(no answer)'}"
        return f"{self.item.name}: {self.seen}, expected {_expected(self.item)}"


@dataclass(frozen=True)
class CheckedImage:
    """The verdicts in the checklist's order. mask: bool [H, W], what to draw anew. sureness: 0..1, of the objects that
    hold, to choose among images of equal score.
    """

    verdicts: tuple[Verdict, ...]
    mask: torch.Tensor
    sureness: float

    @property
    def score(self) -> float:
        """The share of the items that hold, 0..1."""
        return sum(verdict.holds for verdict in self.verdicts) / len(self.verdicts)

    @property
    def failed(self) -> list[str]:
        """What does not hold, a text per item."""
        return [verdict.text for verdict in self.verdicts if not verdict.holds]


def check_image(
    items: Sequence[Item],
    answers: Mapping[Question, str],
    boxes: Sequence[dict],
    masks: torch.Tensor,
    places: Sequence[dict] = (),
    grow: int = 0,
) -> CheckedImage:
    """Check one image.

    boxes, masks [N, H, W]: its objects, labeled with the names of the things. places: boxes with these labels where
    missing objects belong. The mask covers objects that are too many or about which an answer is wrong, and the free
    places of what is missing. Where something is wrong without a place, it covers everything but the objects that are
    right. `grow` pixels are added around wrong objects, and kept around right ones.
    """
    of_thing = {thing: _labeled(boxes, thing.name) for thing in things_of(items)}
    verdicts, wrong, everywhere = [], set(), False
    for item in items:
        if isinstance(item, Thing):
            found = of_thing[item]
            verdicts.append(Verdict(item, item.holds(len(found)), str(len(found))))
            wrong.update(found[item.most :] if item.most is not None else ())
            continue
        verdicts.append(Verdict(item, item.holds(answers[item]), answers[item]))
        if not verdicts[-1].holds:
            about = [index for thing, found in of_thing.items() if thing.name == item.about for index in found]
            wrong.update(about)
            everywhere |= not about
    right = sorted({index for found in of_thing.values() for index in found} - wrong)
    mask = _grown(masks, sorted(wrong), grow)
    for thing, found in of_thing.items():
        if len(found) < thing.fewest:
            free = [place for place in _of_name(places, thing.name) if not any(_in(boxes[i], place) for i in found)]
            everywhere |= not free
            for place in free:
                _fill(mask, place)
    if everywhere:
        mask |= ~_grown(masks, right, grow)
    scores = [box_score(boxes[index]) for index in right]
    return CheckedImage(tuple(verdicts), mask, sum(scores) / len(scores) if scores else 0.0)


def best_first(checked: Sequence[CheckedImage]) -> list[int]:
    """Return the images' indices: the higher score first, then the surer detections, then the input's order."""
    return sorted(range(len(checked)), key=lambda index: (-checked[index].score, -checked[index].sureness))


def _expected(thing: Thing) -> str:
    if thing.most is None:
        return f"{thing.fewest} or more"
    return str(thing.fewest)


def _of_name(boxes: Sequence[dict], name: str) -> list[dict]:
    return [box for box in boxes if name_key(box.get("label", "")) == name_key(name)]


def _labeled(boxes: Sequence[dict], name: str) -> list[int]:
    """Return the indices of the boxes of this name, best first."""
    found = [index for index, box in enumerate(boxes) if name_key(box.get("label", "")) == name_key(name)]
    return sorted(found, key=lambda index: -box_score(boxes[index]))


def _in(box: dict, place: dict) -> bool:
    """Return whether the center of a box lies in a place."""
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    return 0 <= x - place["x"] <= place["width"] and 0 <= y - place["y"] <= place["height"]


def _grown(masks: torch.Tensor, index: Sequence[int], pixels: int) -> torch.Tensor:
    """Return the union of some of the masks, bool [H, W], with so many pixels around it."""
    union = (masks[list(index)] >= MASK_THRESHOLD).any(dim=0).cpu()
    if not pixels or not union.any():
        return union
    return torch.from_numpy(np.asarray(ndimage.distance_transform_edt(~union.numpy())) <= pixels)


def _fill(mask: torch.Tensor, box: dict) -> None:
    bounds = pixel_bounds(box, *mask.shape)
    if bounds is not None:
        x1, y1, x2, y2 = bounds
        mask[y1:y2, x1:x2] = True
