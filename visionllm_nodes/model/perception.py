"""Questions that decoders answer: detect, ground, segment, find what regions mark, pose. Each is one pass of the language model and one of a decoder.

Source: upstream's evaluation scripts (eval_det, eval_visual_prompt, eval_semseg, eval_pose); the prompts are in conversation.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..detections.results import Detection, Keypoints, Segmentation, joined
from . import decoding, prompt_templates
from .image_inputs import Picture
from .prefill import View, ask
from .selection import THINGS, Limits, select
from .visionllm_loader import LoadedVisionLLM

NAMES_AT_ONCE = 80  # names per prompt: the model was trained on up to 100, most often COCO's 80


@torch.no_grad()
def detect(
    loaded: LoadedVisionLLM,
    picture: Picture,
    names: Sequence[str],
    *,
    count: int = THINGS,
    threshold: float = 0.0,
    per_name: int | None = None,
    overlap: float | None = None,
    across_names: bool = False,
    masks: bool = True,
) -> Detection:
    """The `count` best things of the named kinds whose score is at least `threshold`; see `selection.Limits` for the rest.

    One place may appear under several names. More than `NAMES_AT_ONCE` names go in several prompts. Raises ValueError for an empty list,
    an empty or a repeated name.
    """
    limits = Limits(count, threshold, per_name, overlap, across_names)
    decoding.part(loaded, "grounding")
    view = View(loaded, picture)
    check_names(names)
    canvas = decoding.grounding_canvas(loaded, view)
    found = []
    for first in range(0, len(names), NAMES_AT_ONCE):
        turn = prompt_templates.detection(names[first : first + NAMES_AT_ONCE])
        (states,) = ask(loaded, view, [turn], canvas=canvas.pixels)
        found.append(decoding.things(loaded, canvas, states, names, limits, first=first, masks=masks))
    if len(found) == 1:
        return found[0]
    together = joined(found)
    return together.select(select(together, limits))


@torch.no_grad()
def ground(
    loaded: LoadedVisionLLM, picture: Picture, sentence: str, *, reasoning: bool = False, masks: bool = True
) -> Detection:
    """The one thing that a phrase refers to; with `reasoning`, that a whole question or description asks for, taken as it is."""
    decoding.part(loaded, "grounding")
    turn = (prompt_templates.reasoning if reasoning else prompt_templates.grounding)(sentence)
    view = View(loaded, picture)
    canvas = decoding.grounding_canvas(loaded, view)
    (states,) = ask(loaded, view, [turn], canvas=canvas.pixels)
    return decoding.things(loaded, canvas, states, [sentence], Limits(count=1), masks=masks)


@torch.no_grad()
def segment(loaded: LoadedVisionLLM, picture: Picture, names: Sequence[str]) -> Segmentation:
    """A name for every pixel. All names go in one prompt, since they compete for the pixels; the model was trained on up to 150."""
    decoding.part(loaded, "grounding")
    view = View(loaded, picture)
    turn = prompt_templates.semantic_segmentation(names)
    canvas = decoding.grounding_canvas(loaded, view, semantic=True)
    (states,) = ask(loaded, view, [turn], canvas=canvas.pixels)
    return decoding.name_of_each_pixel(loaded, canvas, states, names)


@torch.no_grad()
def find_regions(loaded: LoadedVisionLLM, picture: Picture, marks: torch.Tensor, *, masks: bool = True) -> Detection:
    """The object that each mark lies on: marks bool [R, S, S] at the tower's size (see regions.py); one thing per mark, in the marks' order."""
    canvas, states, names = _ask_about_regions(loaded, picture, marks)
    return decoding.thing_of_each(loaded, canvas, states, names, masks=masks)


@torch.no_grad()
def find_alike(
    loaded: LoadedVisionLLM, picture: Picture, marks: torch.Tensor, limits: Limits, *, masks: bool = True
) -> Detection:
    """Everything that is like what the marks lie on, themselves included; marks as in `find_regions`.

    Upstream names tasks of this kind but publishes no words for them: these are find_regions', whose decoder scores every object of the picture.
    """
    canvas, states, names = _ask_about_regions(loaded, picture, marks)
    return decoding.things(loaded, canvas, states, names, limits, masks=masks)


@torch.no_grad()
def pose(
    loaded: LoadedVisionLLM,
    picture: Picture,
    objects: Sequence[str],
    keypoints: Sequence[str],
    *,
    count: int = THINGS,
    threshold: float = 0.0,
) -> Keypoints:
    """The named keypoints of every object of the named kinds, the `count` best objects whose score is at least `threshold`.

    Raises ValueError for empty lists or repeated names, and for more keypoints than the decoder has slots (68 as published).
    """
    decoding.part(loaded, "pose")
    view = View(loaded, picture)
    turn = prompt_templates.pose(objects, keypoints)
    canvas = decoding.pose_canvas(loaded, view)
    (states,) = ask(loaded, view, [turn], canvas=canvas.pixels)
    return decoding.keypoints(loaded, canvas, states, objects, keypoints, Limits(count, threshold))


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError for names that cannot be asked about; repetitions across several prompts too, since each prompt checks its own alone."""
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if len(names) > NAMES_AT_ONCE and twice:
        raise ValueError(f"the name {twice[0]!r} stands twice in the list")
    prompt_templates.detection(names)


def _ask_about_regions(
    loaded: LoadedVisionLLM, picture: Picture, marks: torch.Tensor
) -> tuple[decoding.Canvas, torch.Tensor, tuple[str, ...]]:
    for needed in ("grounding", "region_encoder"):
        decoding.part(loaded, needed)
    view = View(loaded, picture)
    turn = prompt_templates.interactive(len(marks))
    canvas = decoding.grounding_canvas(loaded, view)
    (states,) = ask(loaded, view, [turn], marks, canvas=canvas.pixels)
    return canvas, states, tuple(f"region{number}" for number in range(1, len(marks) + 1))
