"""The decoders, asked with the language model's states: things, a name for every pixel, or keypoints of one picture.

States are float [K, 4, width] on the model's device: one row per name, region or keypoint, in the order of the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from ..detections.results import Detection, Keypoints, Segmentation
from . import postprocess
from .grounding_decoder import Grounding
from .image_inputs import grounding_picture, padded, pose_picture
from .prefill import View
from .selection import Limits, select
from .visionllm_loader import LoadedVisionLLM


class Canvas(NamedTuple):
    """A decoder's picture, a batch of one on the model's device; where on it the picture is; and the size that answers are for."""

    image: torch.Tensor
    mask: torch.Tensor
    size: tuple[int, int]

    @property
    def pixels(self) -> int:
        return self.mask.numel()

    @property
    def shown(self) -> tuple[int, int]:
        """The picture's size on the canvas."""
        return int(self.mask[0, :, 0].sum()), int(self.mask[0, 0].sum())


def grounding_canvas(loaded: LoadedVisionLLM, view: View, semantic: bool = False) -> Canvas:
    return _canvas(loaded, view, grounding_picture(view.pixels, loaded.settings, semantic))


def pose_canvas(loaded: LoadedVisionLLM, view: View) -> Canvas:
    return _canvas(loaded, view, pose_picture(view.pixels, loaded.settings))


def things(
    loaded: LoadedVisionLLM,
    canvas: Canvas,
    states: torch.Tensor,
    names: Sequence[str],
    limits: Limits,
    *,
    first: int = 0,
    masks: bool = True,
) -> Detection:
    """Whatever the states ask for, within the limits and in the order of results; states[k] is names[first + k]."""
    decoder = part(loaded, "grounding")
    grounding = _ground(decoder, canvas, states)
    found = postprocess.best(grounding.logits[0], limits.candidates)
    found = found._replace(labels=found.labels + first)
    detection = _detection(grounding, found, names, canvas)
    index = select(detection, limits)
    return _drawn(
        decoder, grounding, found.queries[index.to(found.queries.device)], detection.select(index), canvas, masks
    )


def thing_of_each(
    loaded: LoadedVisionLLM, canvas: Canvas, states: torch.Tensor, names: Sequence[str], *, masks: bool = True
) -> Detection:
    """The best thing for each row of states, in their order."""
    decoder = part(loaded, "grounding")
    grounding = _ground(decoder, canvas, states)
    found = postprocess.best_per_prompt(grounding.logits[0])
    return _drawn(decoder, grounding, found.queries, _detection(grounding, found, names, canvas), canvas, masks)


def name_of_each_pixel(
    loaded: LoadedVisionLLM, canvas: Canvas, states: torch.Tensor, names: Sequence[str]
) -> Segmentation:
    """The names compete for the pixels; none is left without."""
    decoder = part(loaded, "grounding")
    grounding = _ground(decoder, canvas, states)
    every = torch.arange(grounding.logits.shape[1], device=canvas.image.device)[None]
    labels = postprocess.semantic_map(
        grounding.logits[0], decoder.masks(grounding, every)[0], canvas.shown, canvas.size
    )
    return Segmentation(tuple(names), labels.cpu())


def keypoints(
    loaded: LoadedVisionLLM,
    canvas: Canvas,
    states: torch.Tensor,
    objects: Sequence[str],
    points: Sequence[str],
    limits: Limits,
) -> Keypoints:
    """The states of the objects, then those of the points."""
    known = torch.ones(1, len(states), dtype=torch.bool, device=canvas.image.device)
    split = len(objects)
    posed = part(loaded, "pose")(
        canvas.image, canvas.mask, states[None, :split], known[:, :split], states[None, split:], known[:, split:]
    )
    found = postprocess.best(posed.logits[0], limits.candidates)
    boxes = postprocess.boxes_in_pixels(posed.boxes[0], canvas.size)[found.queries]
    places = postprocess.keypoints_in_pixels(posed.keypoints[0], canvas.size)[found.queries][..., :2]
    detection = Detection(canvas.size, tuple(objects), found.labels.cpu(), found.scores.cpu(), boxes.cpu())
    every = Keypoints(
        canvas.size, tuple(objects), tuple(points), detection.labels, detection.scores, detection.boxes, places.cpu()
    )
    return every.select(select(detection, limits))


def part(loaded: LoadedVisionLLM, name: str):
    """A part that a checkpoint may lack. Raises ValueError where it does."""
    found = getattr(loaded.model, name)
    if found is None:
        raise ValueError(f"{loaded.name} has no {name.replace('_', ' ')}: it is not a whole VisionLLM v2 checkpoint")
    return found


def _canvas(loaded: LoadedVisionLLM, view: View, picture: torch.Tensor) -> Canvas:
    image, mask = padded([picture], loaded.settings.multiple)
    return Canvas(image.to(loaded.device, loaded.dtype), mask.to(loaded.device), view.size)


def _ground(decoder, canvas: Canvas, states: torch.Tensor) -> Grounding:
    return decoder(
        canvas.image,
        canvas.mask,
        states[None],
        torch.ones(1, len(states), dtype=torch.bool, device=canvas.image.device),
    )


def _detection(grounding: Grounding, found: postprocess.Found, names: Sequence[str], canvas: Canvas) -> Detection:
    boxes = postprocess.boxes_in_pixels(grounding.boxes[0], canvas.size)[found.queries]
    return Detection(canvas.size, tuple(names), found.labels.cpu(), found.scores.cpu(), boxes.cpu())


def _drawn(
    decoder, grounding: Grounding, queries: torch.Tensor, detection: Detection, canvas: Canvas, masks: bool
) -> Detection:
    if not masks:
        return detection
    drawn = postprocess.instance_masks(decoder.masks(grounding, queries[None])[0], canvas.shown, canvas.size)
    return replace(detection, masks=drawn.cpu())
