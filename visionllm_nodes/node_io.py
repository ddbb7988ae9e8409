"""What the question nodes share: their types, batches frame by frame, names out of a text, and things found as outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import comfy.model_management
from comfy_api.latest import io

from ..nodes.common import show
from .detections.bounding_boxes import to_bounding_boxes
from .detections.json_document import document, frame
from .detections.masks import object_masks, union_mask
from .detections.names import split_names
from .detections.results import Detections
from .model.perception import check_names
from .model.prefill import progress_share

VISIONLLM = io.Custom("VISIONLLM")
JSON_TOOLTIP = "All results as one JSON string in the format visionllm-nodes/1. Also kept in the history for "
"API clients."

Asked, Answer = TypeVar("Asked"), TypeVar("Answer")


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


def found_outputs(
    boxes: str = "Bounding boxes in pixels with label and score, one list per image, best first.",
) -> list[io.Output]:
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


def names_of(field: str, text: str) -> list[str]:
    """One name per line, or with commas between them, of any script. Raises ValueError that begins with the field."""
    names = split_names(text)
    try:
        check_names(names)
    except ValueError as error:
        raise ValueError(f"{field}: {error}. Write one name per line, or commas between them.") from error
    return names


def each(pictures: Sequence[Asked], question: Callable[[Asked], Answer]) -> list[Answer]:
    """A question about each picture of a batch, with one progress for all; stops where the user has pressed stop."""
    if not len(pictures):
        raise ValueError("image: there is no picture in the batch")
    answers = []
    for number, picture in enumerate(pictures):
        comfy.model_management.throw_exception_if_processing_interrupted()
        with progress_share(number, len(pictures)):
            answers.append(question(picture))
    return answers


def values_of(
    task: str, prompt: str, found: Sequence[Detections], masks_in_json: bool = False, texts: Sequence[str] | None = None
) -> list:
    """The values of `found_outputs`; `texts`: what is said of each picture."""
    written = document(task, prompt, frames_of_document(found, masks_in_json, texts))
    return [to_bounding_boxes(found), union_mask(found), object_masks(found), sum(map(len, found)), written]


def frames_of_document(
    found: Sequence[Detections], masks_in_json: bool, texts: Sequence[str] | None = None
) -> list[dict]:
    boxes = to_bounding_boxes(found)
    return [
        frame(
            one.size[1],
            one.size[0],
            boxes[number],
            one.masks if masks_in_json else None,
            text=None if texts is None else texts[number],
        )
        for number, one in enumerate(found)
    ]


def found_output(
    node: type[io.ComfyNode], task: str, prompt: str, found: Sequence[Detections], masks_in_json: bool
) -> io.NodeOutput:
    values = values_of(task, prompt, found, masks_in_json)
    return io.NodeOutput(*values, ui=show(node, "\n".join(map(summary, found)), values[-1]))


def summary(found: Detections) -> str:
    """How many of which name, in a line."""
    counts = Counter(found.names[label] for label in found.labels.tolist())
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "nothing found"
