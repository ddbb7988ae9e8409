"""Questions that decoders answer: detect, ground, segment, find what regions mark, pose. Each is one pass of the language model and one of a decoder.

Source: upstream's evaluation scripts (eval_det, eval_visual_prompt, eval_semseg, eval_pose); the prompts are in conversation.py.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch

from . import conversation, postprocess
from .grounding import Grounding
from .loading import LoadedVisionLLM
from .looking import View, ask
from .pictures import Picture, grounding_picture, padded, pose_picture
from .results import Detection, Keypoints, Segmentation, in_order

NAMES_AT_ONCE = 80  # names per prompt: the model was trained on up to 100, most often COCO's 80
THINGS = 100


@torch.no_grad()
def detect(loaded: LoadedVisionLLM, picture: Picture, names: Sequence[str], *, count: int = THINGS, threshold: float = 0.0,
           masks: bool = True) -> Detection:
    """The `count` best things of the named kinds whose score is at least `threshold`; one place may appear under several names.

    More than `NAMES_AT_ONCE` names go in several prompts. Raises ValueError for an empty list, an empty or a repeated name.
    """
    decoder = _part(loaded, "grounding")
    view = View(loaded, picture)
    _check_names(names)
    found = []
    for first in range(0, len(names), NAMES_AT_ONCE):
        turn = conversation.detection(names[first:first + NAMES_AT_ONCE])
        found.append(_detected(loaded, decoder, view, turn, names, first, count, threshold, masks))
    return _best(found, count)


@torch.no_grad()
def ground(loaded: LoadedVisionLLM, picture: Picture, sentence: str, *, reasoning: bool = False, masks: bool = True) -> Detection:
    """The one thing that a phrase refers to; with `reasoning`, that a whole question or description asks for, taken as it is."""
    turn = (conversation.reasoning if reasoning else conversation.grounding)(sentence)
    return _detected(loaded, _part(loaded, "grounding"), View(loaded, picture), turn, [sentence], 0, 1, 0.0, masks)


@torch.no_grad()
def segment(loaded: LoadedVisionLLM, picture: Picture, names: Sequence[str]) -> Segmentation:
    """A name for every pixel. All names go in one prompt, since they compete for the pixels; the model was trained on up to 150."""
    decoder = _part(loaded, "grounding")
    view = View(loaded, picture)
    turn = conversation.semantic_segmentation(names)
    image, mask = _canvas(loaded, grounding_picture(view.pixels, loaded.settings, semantic=True))
    queries, = ask(loaded, view, [turn], canvas=mask.numel())
    grounding = _ground(decoder, image, mask, queries)
    every = torch.arange(grounding.logits.shape[1], device=image.device)[None]
    shown = _shown(mask)
    labels = postprocess.semantic_map(grounding.logits[0], decoder.masks(grounding, every)[0], shown, view.size)
    return Segmentation(tuple(names), labels.cpu())


@torch.no_grad()
def find_regions(loaded: LoadedVisionLLM, picture: Picture, marks: torch.Tensor, *, masks: bool = True) -> Detection:
    """The object that each mark lies on: marks bool [R, S, S] at the tower's size (see regions.py); one thing per mark, in the marks' order."""
    decoder = _part(loaded, "grounding")
    _part(loaded, "region_encoder")
    view = View(loaded, picture)
    image, mask = _canvas(loaded, grounding_picture(view.pixels, loaded.settings))
    queries, = ask(loaded, view, [conversation.interactive(len(marks))], marks, canvas=mask.numel())
    grounding = _ground(decoder, image, mask, queries)
    found = postprocess.best_per_prompt(grounding.logits[0])
    names = tuple(f"region{number}" for number in range(1, len(marks) + 1))
    return _detection(decoder, grounding, found, names, view, mask, masks)


@torch.no_grad()
def pose(loaded: LoadedVisionLLM, picture: Picture, objects: Sequence[str], keypoints: Sequence[str], *, count: int = THINGS,
         threshold: float = 0.0) -> Keypoints:
    """The named keypoints of every object of the named kinds, the `count` best objects whose score is at least `threshold`.

    Raises ValueError for empty lists or repeated names, and for more keypoints than the decoder has slots (68 as published).
    """
    decoder = _part(loaded, "pose")
    view = View(loaded, picture)
    turn = conversation.pose(objects, keypoints)
    image, mask = _canvas(loaded, pose_picture(view.pixels, loaded.settings))
    queries, = ask(loaded, view, [turn], canvas=mask.numel())
    known = torch.ones(1, len(queries), dtype=torch.bool, device=image.device)
    split = len(objects)
    posed = decoder(image, mask, queries[None, :split], known[:, :split], queries[None, split:], known[:, split:])
    found = postprocess.best(posed.logits[0], count)
    boxes = postprocess.boxes_in_pixels(posed.boxes[0], view.size)[found.queries]
    points = postprocess.keypoints_in_pixels(posed.keypoints[0], view.size)[found.queries][..., :2]
    result = Keypoints(view.size, tuple(objects), tuple(keypoints), found.labels.cpu(), found.scores.cpu(), boxes.cpu(), points.cpu())
    result = result.select(in_order(result.scores, result.boxes))
    return result.select(result.scores >= threshold)


def _detected(loaded, decoder, view: View, turn, names, first: int, count: int, threshold: float, masks: bool) -> Detection:
    """One prompt's things; its first name is names[first]."""
    image, mask = _canvas(loaded, grounding_picture(view.pixels, loaded.settings))
    queries, = ask(loaded, view, [turn], canvas=mask.numel())
    grounding = _ground(decoder, image, mask, queries)
    found = postprocess.best(grounding.logits[0], count)
    found = postprocess.Found(*(part[found.scores >= threshold] for part in found))
    found = found._replace(labels=found.labels + first)
    result = _detection(decoder, grounding, found, tuple(names), view, mask, masks)
    return result.select(in_order(result.scores, result.boxes))


def _detection(decoder, grounding: Grounding, found: postprocess.Found, names, view: View, mask, masks: bool) -> Detection:
    boxes = postprocess.boxes_in_pixels(grounding.boxes[0], view.size)[found.queries]
    drawn = None
    if masks:
        drawn = postprocess.instance_masks(decoder.masks(grounding, found.queries[None])[0], _shown(mask), view.size).cpu()
    return Detection(view.size, names, found.labels.cpu(), found.scores.cpu(), boxes.cpu(), drawn)


def _ground(decoder, image, mask, queries) -> Grounding:
    return decoder(image, mask, queries[None], torch.ones(1, len(queries), dtype=torch.bool, device=image.device))


def _best(found: Sequence[Detection], count: int) -> Detection:
    """The best of several prompts' things."""
    if len(found) == 1:
        return found[0]
    masks = None if found[0].masks is None else torch.cat([part.masks for part in found])
    joined = Detection(found[0].size, found[0].names, *(torch.cat([getattr(part, name) for part in found]) for name in ("labels", "scores", "boxes")), masks)
    return joined.select(in_order(joined.scores, joined.boxes)[:count])


def _canvas(loaded: LoadedVisionLLM, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A decoder's picture on its canvas, a batch of one on the model's device, and where the picture is."""
    image, mask = padded([picture], loaded.settings.multiple)
    return image.to(loaded.device, loaded.dtype), mask.to(loaded.device)


def _shown(mask: torch.Tensor) -> tuple[int, int]:
    """The picture's size on the canvas."""
    return int(mask[0, :, 0].sum()), int(mask[0, 0].sum())


def _check_names(names: Sequence[str]) -> None:
    """Repetitions across several prompts; each prompt checks its own."""
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if len(names) > NAMES_AT_ONCE and twice:
        raise ValueError(f"the name {twice[0]!r} stands twice in the list")
    if not names:
        raise ValueError("the list of names is empty")


def _part(loaded: LoadedVisionLLM, name: str):
    part = getattr(loaded.model, name)
    if part is None:
        raise ValueError(f"{loaded.name} has no {name.replace('_', ' ')}: it is not a whole VisionLLM v2 checkpoint")
    return part
