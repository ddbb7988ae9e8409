"""Questions that decoders answer: detect, ground, segment, objects at marked regions, keypoints.

Each is one pass of the language model and one of a decoder. Source: upstream's evaluation scripts (eval_det,
eval_visual_prompt, eval_semseg, eval_pose); the prompts are in prompt_templates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ...mulan.boundary.limits import MAX_NAME_LENGTH, MAX_NAMES, MAX_REGIONS
from ..detections.masks import check_mask_pixels
from ..detections.results import Detections, Keypoints, Segmentation, concatenate
from . import decoding, prompt_templates
from .image_inputs import ImageLike
from .prefill import ImageView, progress_share, super_link_states
from .prompt_templates import Turn
from .selection import MAX_DETECTIONS, Limits, select
from .visionllm_loader import LoadedVisionLLM

NAMES_PER_PROMPT = 80  # names or regions: the model was trained on up to 100 names, most often COCO's 80


@torch.no_grad()
def detect(
    loaded: LoadedVisionLLM,
    image: ImageLike,
    names: Sequence[str],
    *,
    negative: Sequence[str] = (),
    max_detections: int = MAX_DETECTIONS,
    threshold: float = 0.0,
    max_per_name: int | None = None,
    iou_threshold: float | None = None,
    class_agnostic: bool = False,
    masks: bool = True,
) -> Detections:
    """Detect every object of the named kinds; see `selection.Limits` for the limits.

    One object may appear under several names, but not where one of the `negative` names fits it better. More than
    `NAMES_PER_PROMPT` names are asked in several prompts. Raises ValueError for an empty list, an empty or a repeated
    name.
    """
    limits = Limits(max_detections, threshold, max_per_name, iou_threshold, class_agnostic)
    decoding.require_part(loaded, "grounding")
    view = ImageView(loaded, image)
    asked = [*names, *negative]
    check_names(asked)
    canvas = decoding.grounding_canvas(loaded, view)
    some_go = replace(limits, max_detections=2 * max_detections) if negative else limits

    def ask(part: slice) -> Detections:
        turn = prompt_templates.detection(asked[part])
        (queries,) = super_link_states(loaded, view, [turn], decoder=canvas.memory)
        return decoding.detect(loaded, canvas, queries, asked, some_go, first=part.start, masks=masks)

    found = _ask_in_parts(len(asked), ask, lambda found: found.select(select(found, some_go)))
    return found.select(select(found, replace(limits, wanted=len(names)))) if negative else found


@torch.no_grad()
def ground(
    loaded: LoadedVisionLLM, image: ImageLike, sentence: str, *, reasoning: bool = False, masks: bool = True
) -> Detections:
    """Detect the one object that a phrase refers to.

    With `reasoning` the one that a whole question or description, taken as it is, refers to.
    """
    turn = (prompt_templates.reasoning if reasoning else prompt_templates.grounding)(sentence)
    return _one_object(loaded, image, turn, sentence, masks)


@torch.no_grad()
def detect_salient(
    loaded: LoadedVisionLLM, image: ImageLike, label: str, *, camouflaged: bool = False, masks: bool = True
) -> Detections:
    """Detect the one object that stands out, or with `camouflaged` the one that hides; it gets the label."""
    name = prompt_templates.CAMOUFLAGE if camouflaged else prompt_templates.FOREGROUND
    return _one_object(loaded, image, prompt_templates.salient(name), label, masks)


@torch.no_grad()
def segment(loaded: LoadedVisionLLM, image: ImageLike, names: Sequence[str]) -> Segmentation:
    """Give every pixel one of the names.

    All names go in one prompt, since they compete for the pixels; the model was trained on up to 150. Raises ValueError
    for what `check_names` refuses.
    """
    check_names(names)
    decoding.require_part(loaded, "grounding")
    view = ImageView(loaded, image)
    turn = prompt_templates.semantic_segmentation(names)
    canvas = decoding.grounding_canvas(loaded, view, semantic=True)
    (queries,) = super_link_states(loaded, view, [turn], decoder=canvas.memory)
    return decoding.segment_pixels(loaded, canvas, queries, names)


@torch.no_grad()
def detect_at_regions(
    loaded: LoadedVisionLLM, image: ImageLike, region_masks: torch.Tensor, *, masks: bool = True
) -> Detections:
    """Detect the object at each region, in their order.

    region_masks: bool [R, S, S] at the tower's size, see regions.py. More than `NAMES_PER_PROMPT` are asked about in
    several prompts. Raises ValueError for none, and for too many.
    """
    view, canvas, names = _prepare_regions(loaded, image, region_masks)
    if masks:
        check_mask_pixels(len(names), *view.size)

    def ask(part: slice) -> Detections:
        queries = _region_queries(loaded, view, canvas, region_masks[part])
        return decoding.detect_per_prompt(loaded, canvas, queries, names, first=part.start, masks=masks)

    return _ask_in_parts(len(names), ask)


@torch.no_grad()
def detect_similar(
    loaded: LoadedVisionLLM, image: ImageLike, region_masks: torch.Tensor, limits: Limits, *, masks: bool = True
) -> Detections:
    """Detect every object like those at the regions, themselves included; region_masks as in `detect_at_regions`.

    Upstream names tasks of this kind but publishes no prompt for them: this one is detect_at_regions', whose decoder
    scores every object of the image.
    """
    view, canvas, names = _prepare_regions(loaded, image, region_masks)

    def ask(part: slice) -> Detections:
        queries = _region_queries(loaded, view, canvas, region_masks[part])
        return decoding.detect(loaded, canvas, queries, names, limits, first=part.start, masks=masks)

    return _ask_in_parts(len(names), ask, lambda found: found.select(select(found, limits)))


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
    (queries,) = super_link_states(loaded, view, [turn], decoder=canvas.memory)
    return decoding.detect_keypoints(loaded, canvas, queries, objects, keypoints, Limits(max_detections, threshold))


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for names that cannot be asked about.

    Repetitions across several prompts count too, though each prompt checks only its own.
    """
    if len(names) > MAX_NAMES:
        raise ValueError(f"there are {len(names)} names, and at most {MAX_NAMES} are asked about")
    longest = max(names, key=len, default="")
    if len(longest) > MAX_NAME_LENGTH:
        raise ValueError(
            f"the name {longest[:40]!r}... is {len(longest)} characters long, and at most {MAX_NAME_LENGTH} are read"
        )
    prompt_templates.detection(names)


def _one_object(loaded: LoadedVisionLLM, image: ImageLike, turn: Turn, label: str, masks: bool) -> Detections:
    decoding.require_part(loaded, "grounding")
    view = ImageView(loaded, image)
    canvas = decoding.grounding_canvas(loaded, view)
    (queries,) = super_link_states(loaded, view, [turn], decoder=canvas.memory)
    return decoding.detect(loaded, canvas, queries, [label], Limits(max_detections=1), masks=masks)


def _ask_in_parts(
    count: int, ask: Callable[[slice], Detections], within_limits: Callable[[Detections], Detections] | None = None
) -> Detections:
    """Ask about `count` names or regions, at least one, in as many prompts as they need.

    within_limits: what is kept of two prompts' detections; by default all, in their order.
    """
    starts = range(0, count, NAMES_PER_PROMPT)
    parts: list[Detections] = []
    for index, start in enumerate(starts):
        with progress_share(index, len(starts)):
            parts.append(ask(slice(start, start + NAMES_PER_PROMPT)))
        if within_limits is not None and len(parts) > 1:
            parts = [within_limits(concatenate(parts))]
    return parts[0] if len(parts) == 1 else concatenate(parts)


def _prepare_regions(
    loaded: LoadedVisionLLM, image: ImageLike, region_masks: torch.Tensor
) -> tuple[ImageView, decoding.Canvas, tuple[str, ...]]:
    for name in ("grounding", "region_encoder"):
        decoding.require_part(loaded, name)
    if len(region_masks) > MAX_REGIONS:
        raise ValueError(f"there are {len(region_masks)} regions, and at most {MAX_REGIONS} are asked about")
    if not len(region_masks):
        raise ValueError("there are no regions to ask about")
    view = ImageView(loaded, image)
    names = tuple(f"region{index}" for index in range(1, len(region_masks) + 1))
    return view, decoding.grounding_canvas(loaded, view), names


def _region_queries(
    loaded: LoadedVisionLLM, view: ImageView, canvas: decoding.Canvas, region_masks: torch.Tensor
) -> torch.Tensor:
    turn = prompt_templates.interactive(len(region_masks))
    (queries,) = super_link_states(loaded, view, [turn], region_masks, decoder=canvas.memory)
    return queries
