"""What the VisionLLM nodes share: socket types and inputs, the loop over a batch, and outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import comfy.model_management
import torch
from comfy_api.latest import io

from ..mulan.boundary.limits import MAX_MASK_PIXELS
from ..nodes.checked_node import CheckedNode, instance_of
from ..nodes.common import show_text
from .detections.bounding_boxes import check_boxes, to_bounding_boxes
from .detections.json_document import frame_record, write_document
from .detections.keypoints import check_keypoints
from .detections.masks import object_masks, union_mask
from .detections.names import split_names
from .detections.pose_keypoint import check_pose
from .detections.results import Detections
from .model.perception import check_names
from .model.prefill import progress_share
from .model.visionllm_loader import LoadedVisionLLM

VISIONLLM = io.Custom("VISIONLLM")
KEYPOINTS = io.Custom("KEYPOINTS")
POSE_KEYPOINT = io.Custom("POSE_KEYPOINT")
JSON_TOOLTIP = (
    "All results as one JSON string in the format visionllm-nodes/1. Also kept in the history for API clients."
)

Item = TypeVar("Item")
Result = TypeVar("Result")


class VisionLLMNode(CheckedNode):
    checks = CheckedNode.checks | {
        VISIONLLM.io_type: instance_of(LoadedVisionLLM, "the model from VisionLLM Loader"),
        io.BoundingBox.io_type: check_boxes,
        KEYPOINTS.io_type: check_keypoints,
        POSE_KEYPOINT.io_type: check_pose,
    }


def model_input() -> io.Input:
    return VISIONLLM.Input("visionllm", tooltip="The model from VisionLLM Loader.")


def image_input() -> io.Input:
    return io.Image.Input(
        "image", tooltip="Images to analyze. Each image of a batch, or frame of a video, is processed separately."
    )


def threshold_input(default: float, tooltip: str) -> io.Input:
    return io.Float.Input("threshold", default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def top_k_input(default: int, tooltip: str = "Maximum detections per image, best first.") -> io.Input:
    return io.Int.Input("top_k", default=default, min=1, max=900, tooltip=tooltip)


def json_masks_input() -> io.Input:
    return io.Boolean.Input(
        "masks_in_json",
        default=False,
        optional=True,
        advanced=True,
        tooltip="Adds each mask to the JSON as COCO run-length encoding (RLE).",
    )


def parse_names(field: str, text: str) -> list[str]:
    """Split names at lines and at the commas of any script. Raise ValueError that begins with the field."""
    names = split_names(text)
    try:
        check_names(names)
    except ValueError as error:
        raise ValueError(f"{field}: {error}. Write one name per line or separate them with commas.") from error
    return names


def for_each_image(images: Sequence[Item], ask: Callable[[Item], Result]) -> list[Result]:
    """Call `ask` with each item of a batch, under one progress bar. Stop when the user interrupts.

    Raise ValueError where the masks in the results become too many.
    """
    if not len(images):
        raise ValueError("image: the batch is empty")
    results, pixels = [], 0
    for index, image in enumerate(images):
        comfy.model_management.throw_exception_if_processing_interrupted()
        with progress_share(index, len(images)):
            results.append(ask(image))
        masks = getattr(getattr(results[-1], "detections", results[-1]), "masks", None)
        pixels += 0 if masks is None else masks.numel()
        if pixels > MAX_MASK_PIXELS:
            raise ValueError(
                f"image: the masks of the first {index + 1} images have {pixels // 2**20} million pixels, and at most "
                f"{MAX_MASK_PIXELS // 2**20} million are kept. Process fewer images at a time, or lower top_k."
            )
    return results


def detection_outputs(
    boxes: str = "Bounding boxes in pixels with label and score, one list per image, best first.",
) -> list[io.Output]:
    """Return the outputs for the values of `detection_values` and the JSON document."""
    return [
        io.BoundingBox.Output(display_name="bboxes", tooltip=boxes),
        io.Mask.Output(display_name="mask", tooltip="Union mask: one per image, covering all its detections."),
        io.Mask.Output(
            display_name="masks",
            tooltip="One mask per box, in the order of the boxes across all images. A single empty mask if "
            "nothing was found.",
        ),
        io.Int.Output(display_name="count", tooltip="Total number of detections across all images."),
        io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
    ]


def detection_values(detections: Sequence[Detections]) -> tuple[list[list[dict]], torch.Tensor, torch.Tensor, int]:
    """Return the values of `detection_outputs` but the JSON: boxes, union masks, object masks, count."""
    return to_bounding_boxes(detections), union_mask(detections), object_masks(detections), sum(map(len, detections))


def detection_frames(
    detections: Sequence[Detections],
    boxes: Sequence[list[dict]],
    masks_in_json: bool,
    texts: Sequence[str] | None = None,
) -> list[dict]:
    """Return the JSON document's frames, one per image; `boxes` as `detection_values` gives them."""
    return [
        frame_record(
            found.size[1],
            found.size[0],
            boxes[index],
            found.masks if masks_in_json else None,
            text=None if texts is None else texts[index],
        )
        for index, found in enumerate(detections)
    ]


def detection_output(task: str, prompt: str, detections: Sequence[Detections], masks_in_json: bool) -> io.NodeOutput:
    """Return the values of `detection_outputs`, with a summary in the node."""
    values = detection_values(detections)
    record = write_document(task, prompt, detection_frames(detections, values[0], masks_in_json))
    return io.NodeOutput(*values, record, ui=show_text("\n".join(map(summarize, detections)), record))


def summarize(detections: Detections) -> str:
    """Return the number of detections per name, as one line."""
    counts = Counter(detections.names[label] for label in detections.labels.tolist())
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "nothing found"


def to_conditioning(context: torch.Tensor) -> list:
    """Return CONDITIONING of a context [B, 77, 768], with a pooled vector of zeros: SD1.5 reads none.

    Every CLIP gives one, and nodes that schedule or join prompts expect it.
    """
    return [[context, {"pooled_output": context.new_zeros(len(context), context.shape[-1])}]]
