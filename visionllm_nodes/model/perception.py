"""Questions that decoders answer: detect, ground, segment, objects at marked regions, keypoints.

Each is one pass of the language model and one of a decoder. Source: upstream's evaluation scripts (eval_det,
eval_visual_prompt, eval_semseg, eval_pose); the prompts are in prompt_templates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..detections.results import Detections, Keypoints, Segmentation, concatenate
from . import decoding, prompt_templates
from .image_inputs import ImageLike
from .prefill import ImageView, super_link_states
from .selection import MAX_DETECTIONS, Limits, select
from .visionllm_loader import LoadedVisionLLM

NAMES_PER_PROMPT = 80  # the model was trained on up to 100 names, most often COCO's 80


@torch.no_grad()
def detect(
    loaded: LoadedVisionLLM,
    image: ImageLike,
    names: Sequence[str],
    *,
    max_detections: int = MAX_DETECTIONS,
    threshold: float = 0.0,
    max_per_name: int | None = None,
    iou_threshold: float | None = None,
    class_agnostic: bool = False,
    masks: bool = True,
) -> Detections:
    """Detect every object of the named kinds; see `selection.Limits` for the limits.

    One object may appear under several names. More than `NAMES_PER_PROMPT` names are asked in several prompts. Raises
    ValueError for an empty list, an empty or a repeated name.
    """
    limits = Limits(max_detections, threshold, max_per_name, iou_threshold, class_agnostic)
    decoding.require_part(loaded, "grounding")
    view = ImageView(loaded, image)
    check_names(names)
    canvas = decoding.grounding_canvas(loaded, view)
    parts = []
    for first in range(0, len(names), NAMES_PER_PROMPT):
        turn = prompt_templates.detection(names[first : first + NAMES_PER_PROMPT])
        (queries,) = super_link_states(loaded, view, [turn], canvas=canvas.pixels)
        parts.append(decoding.detect(loaded, canvas, queries, names, limits, first=first, masks=masks))
    if len(parts) == 1:
        return parts[0]
    detections = concatenate(parts)
    return detections.select(select(detections, limits))


@torch.no_grad()
def ground(
    loaded: LoadedVisionLLM, image: ImageLike, sentence: str, *, reasoning: bool = False, masks: bool = True
) -> Detections:
    """Detect the one object that a phrase refers to.

    With `reasoning` the one that a whole question or description, taken as it is, refers to.
    """
    decoding.require_part(loaded, "grounding")
    turn = (prompt_templates.reasoning if reasoning else prompt_templates.grounding)(sentence)
    view = ImageView(loaded, image)
    canvas = decoding.grounding_canvas(loaded, view)
    (queries,) = super_link_states(loaded, view, [turn], canvas=canvas.pixels)
    return decoding.detect(loaded, canvas, queries, [sentence], Limits(max_detections=1), masks=masks)


@torch.no_grad()
def segment(loaded: LoadedVisionLLM, image: ImageLike, names: Sequence[str]) -> Segmentation:
    """Give every pixel one of the names.

    All names go in one prompt, since they compete for the pixels; the model was trained on up to 150.
    """
    decoding.require_part(loaded, "grounding")
    view = ImageView(loaded, image)
    turn = prompt_templates.semantic_segmentation(names)
    canvas = decoding.grounding_canvas(loaded, view, semantic=True)
    (queries,) = super_link_states(loaded, view, [turn], canvas=canvas.pixels)
    return decoding.segment_pixels(loaded, canvas, queries, names)


@torch.no_grad()
def detect_at_regions(
    loaded: LoadedVisionLLM, image: ImageLike, region_masks: torch.Tensor, *, masks: bool = True
) -> Detections:
    """Detect the object at each region, in their order.

    region_masks: bool [R, S, S] at the tower's size, see regions.py.
    """
    canvas, queries, names = _ask_about_regions(loaded, image, region_masks)
    return decoding.detect_per_prompt(loaded, canvas, queries, names, masks=masks)


@torch.no_grad()
def detect_similar(
    loaded: LoadedVisionLLM, image: ImageLike, region_masks: torch.Tensor, limits: Limits, *, masks: bool = True
) -> Detections:
    """Detect every object like those at the regions, themselves included; region_masks as in `detect_at_regions`.

    Upstream names tasks of this kind but publishes no prompt for them: this one is detect_at_regions', whose decoder
    scores every object of the image.
    """
    canvas, queries, names = _ask_about_regions(loaded, image, region_masks)
    return decoding.detect(loaded, canvas, queries, names, limits, masks=masks)


@torch.no_grad()
def pose(
    loaded: LoadedVisionLLM,
    image: ImageLike,
    objects: Sequence[str],
    keypoints: Sequence[str],
    *,
    max_detections: int = MAX_DETECTIONS,
    threshold: float = 0.0,
) -> Keypoints:
    """Detect the named keypoints of every object of the named kinds.

    Raises ValueError for empty lists or repeated names, and for more keypoints than the decoder has slots (68 as
    published).
    """
    decoding.require_part(loaded, "pose")
    view = ImageView(loaded, image)
    turn = prompt_templates.pose(objects, keypoints)
    canvas = decoding.pose_canvas(loaded, view)
    (queries,) = super_link_states(loaded, view, [turn], canvas=canvas.pixels)
    return decoding.detect_keypoints(loaded, canvas, queries, objects, keypoints, Limits(max_detections, threshold))


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for names that cannot be asked about.

    Repetitions across several prompts count too, though each prompt checks only its own.
    """
    repeated = [name for index, name in enumerate(names) if name in names[:index]]
    if len(names) > NAMES_PER_PROMPT and repeated:
        raise ValueError(f"{repeated[0]!r} appears twice among the names")
    prompt_templates.detection(names)


def _ask_about_regions(
    loaded: LoadedVisionLLM, image: ImageLike, region_masks: torch.Tensor
) -> tuple[decoding.Canvas, torch.Tensor, tuple[str, ...]]:
    for name in ("grounding", "region_encoder"):
        decoding.require_part(loaded, name)
    view = ImageView(loaded, image)
    turn = prompt_templates.interactive(len(region_masks))
    canvas = decoding.grounding_canvas(loaded, view)
    (queries,) = super_link_states(loaded, view, [turn], region_masks, canvas=canvas.pixels)
    return canvas, queries, tuple(f"region{index}" for index in range(1, len(region_masks) + 1))
