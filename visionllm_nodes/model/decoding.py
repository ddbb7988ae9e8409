"""The decoders, asked with the language model's hidden states: detections, a name for every pixel, or keypoints.

Queries are float [K, 4, C] on the model's device: one row per name, region or keypoint, in the order of the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from ..detections.masks import check_mask_pixels
from ..detections.results import Detections, Keypoints, Segmentation
from . import postprocess
from .grounding_decoder import GroundingOutput
from .image_inputs import grounding_image, pad_to_multiple, pose_image
from .prefill import ImageView
from .selection import Limits, select
from .visionllm_loader import LoadedVisionLLM

MASKS_AT_ONCE = 64  # whose logits are on the device together
# What a decoder takes beside its weights, counted for each cell of 4 x 4 pixels of the canvas.
CELL = 16
BYTES_PER_CELL = 4160  # float32: positions, sampled points, and what is read there
BACKBONE_WIDTH = 10  # times the channels of the backbone's finest map


class Canvas(NamedTuple):
    """A decoder's padded image, a batch of one on the model's device.

    mask: bool [1, H, W], True on the image, of which `content` is the height and width. size: (height, width) of the
    original image, which results are for. memory: bytes that the decoder takes, and the masks of its results.
    """

    image: torch.Tensor
    mask: torch.Tensor
    content: tuple[int, int]
    size: tuple[int, int]
    memory: int


def grounding_canvas(loaded: LoadedVisionLLM, view: ImageView, semantic: bool = False) -> Canvas:
    """Return the grounding decoder's canvas; `semantic`: at the size of semantic segmentation."""
    decoder = require_part(loaded, "grounding")
    canvas = _canvas(loaded, view, grounding_image(view.pixels, loaded.settings, semantic), decoder)
    if not semantic:
        return canvas
    mask = canvas.mask.numel() // CELL * (loaded.decoder_dtype.itemsize + 3 * torch.float32.itemsize)
    return canvas._replace(memory=max(canvas.memory, decoder.config.num_queries * mask))


def pose_canvas(loaded: LoadedVisionLLM, view: ImageView) -> Canvas:
    """Return the pose decoder's canvas."""
    return _canvas(loaded, view, pose_image(view.pixels, loaded.settings), require_part(loaded, "pose"))


def detect(
    loaded: LoadedVisionLLM,
    canvas: Canvas,
    queries: torch.Tensor,
    names: Sequence[str],
    limits: Limits,
    *,
    first: int = 0,
    masks: bool = True,
) -> Detections:
    """Return whatever the queries ask for, within the limits and in the order of results.

    queries[k] is that of names[first + k].
    """
    grounding = _ground(loaded, canvas, queries)
    top = postprocess.top_queries(grounding.logits[0], limits.candidates)
    top = top._replace(labels=top.labels + first)
    detections = _detections(grounding, top, names, canvas)
    index = select(detections, limits)
    kept = top.queries[index.to(top.queries.device)]
    return _with_masks(loaded, grounding, kept, detections.select(index), canvas, masks)


def detect_per_prompt(
    loaded: LoadedVisionLLM,
    canvas: Canvas,
    queries: torch.Tensor,
    names: Sequence[str],
    *,
    first: int = 0,
    masks: bool = True,
) -> Detections:
    """Return the best detection for each row of queries, in their order; queries[k] is that of names[first + k]."""
    grounding = _ground(loaded, canvas, queries)
    top = postprocess.top_per_prompt(grounding.logits[0])
    top = top._replace(labels=top.labels + first)
    detections = _detections(grounding, top, names, canvas)
    return _with_masks(loaded, grounding, top.queries, detections, canvas, masks)


def segment_pixels(
    loaded: LoadedVisionLLM, canvas: Canvas, queries: torch.Tensor, names: Sequence[str]
) -> Segmentation:
    """Return a name for every pixel; the names compete for the pixels."""
    grounding = _ground(loaded, canvas, queries)
    mask_logits = _mask_logits(loaded, grounding, torch.arange(grounding.logits.shape[1], device=canvas.image.device))
    labels = postprocess.semantic_map(grounding.logits[0], mask_logits, canvas.content, canvas.size)
    return Segmentation(tuple(names), labels.cpu())


def detect_keypoints(
    loaded: LoadedVisionLLM,
    canvas: Canvas,
    queries: torch.Tensor,
    objects: Sequence[str],
    points: Sequence[str],
    limits: Limits,
) -> Keypoints:
    """Return the keypoints of all objects, within the limits.

    queries: those of the objects, then those of the points.
    """
    queries = queries.to(canvas.image.dtype)
    known = torch.ones(1, len(queries), dtype=torch.bool, device=canvas.image.device)
    split = len(objects)
    poses = require_part(loaded, "pose")(
        canvas.image, canvas.mask, queries[None, :split], known[:, :split], queries[None, split:], known[:, split:]
    )
    for values, what in ((poses.logits, "scores"), (poses.boxes, "boxes"), (poses.keypoints, "keypoints")):
        loaded.check_finite(values, what)
    top = postprocess.top_queries(poses.logits[0], limits.candidates)
    boxes = postprocess.boxes_in_pixels(poses.boxes[0], canvas.size)[top.queries]
    positions = postprocess.keypoints_in_pixels(poses.keypoints[0], canvas.size)[top.queries][..., :2]
    detections = Detections(canvas.size, tuple(objects), top.labels.cpu(), top.scores.cpu(), boxes.cpu())
    keypoints = Keypoints(
        canvas.size,
        tuple(objects),
        tuple(points),
        detections.labels,
        detections.scores,
        detections.boxes,
        positions.cpu(),
    )
    return keypoints.select(select(detections, limits))


def require_part(loaded: LoadedVisionLLM, name: str):
    """Return a part that a checkpoint may lack. Raises ValueError where it does."""
    part = getattr(loaded.model, name)
    if part is None:
        raise ValueError(f"{loaded.name} has no {name.replace('_', ' ')}: it is not a complete VisionLLM v2 checkpoint")
    return part


def _canvas(loaded: LoadedVisionLLM, view: ImageView, image: torch.Tensor, decoder) -> Canvas:
    batch, mask = pad_to_multiple([image], loaded.settings.multiple)
    content = image.shape[1], image.shape[2]
    width = BACKBONE_WIDTH * decoder.backbone.config.embed_dim * loaded.decoder_dtype.itemsize
    memory = max(mask.numel() // CELL * (width + BYTES_PER_CELL), postprocess.MASK_MEMORY)
    return Canvas(batch.to(loaded.device, loaded.decoder_dtype), mask.to(loaded.device), content, view.size, memory)


def _ground(loaded: LoadedVisionLLM, canvas: Canvas, queries: torch.Tensor) -> GroundingOutput:
    known = torch.ones(1, len(queries), dtype=torch.bool, device=canvas.image.device)
    found = require_part(loaded, "grounding")(canvas.image, canvas.mask, queries[None].to(canvas.image.dtype), known)
    for values, what in ((found.logits, "scores"), (found.boxes, "boxes"), (found.mask_features, "masks")):
        loaded.check_finite(values, what)
    return found


def _detections(
    grounding: GroundingOutput, top: postprocess.TopQueries, names: Sequence[str], canvas: Canvas
) -> Detections:
    boxes = postprocess.boxes_in_pixels(grounding.boxes[0], canvas.size)[top.queries]
    return Detections(canvas.size, tuple(names), top.labels.cpu(), top.scores.cpu(), boxes.cpu())


def _with_masks(
    loaded: LoadedVisionLLM,
    grounding: GroundingOutput,
    queries: torch.Tensor,
    detections: Detections,
    canvas: Canvas,
    masks: bool,
) -> Detections:
    if not masks:
        return detections
    check_mask_pixels(len(detections), *canvas.size)
    found = torch.empty(len(detections), *canvas.size, dtype=torch.bool)  # in main memory, whatever computes them
    for first in range(0, len(detections), MASKS_AT_ONCE):
        part = slice(first, first + MASKS_AT_ONCE)
        logits = _mask_logits(loaded, grounding, queries[part])
        found[part] = postprocess.instance_masks(logits, canvas.content, canvas.size, found.device)
    return replace(detections, masks=found)


def _mask_logits(loaded: LoadedVisionLLM, grounding: GroundingOutput, queries: torch.Tensor) -> torch.Tensor:
    """Return the mask logits [N, H/4, W/4] of some queries [N]."""
    return loaded.check_finite(require_part(loaded, "grounding").masks(grounding, queries[None])[0], "masks")
