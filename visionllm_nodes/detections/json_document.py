"""Results as one JSON document, for files, other programs and the history.

{"format": "visionllm-nodes/1", "task": "detect", "prompt": "dog, cat", "frames": [
  {"width": 640, "height": 480, "text": "...", "skeleton": [[0, 1], ...], "objects": [
    {"label": "dog", "score": 0.9134, "box": [x, y, width, height],
     "keypoints": [{"name": "nose", "x": 1.5, "y": 2.0, "score": 1.0}, ...],
     "mask": {"size": [480, 640], "counts": [...]}}]}]}

One frame per image; a text about several images together, or without any, stands as "text" beside "frames". Pixels have
two decimals, scores four. Masks are run lengths as COCO writes them uncompressed: column by column, the first run not
set. "text", "skeleton", "label", "score", "keypoints" and "mask" stand only where they have a value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...mulan.boundary.files import parse_json
from ...mulan.boundary.interrupts import interruptible
from ...mulan.boundary.values import shown
from .bounding_boxes import SIDES
from .checks import Place, entries, fields, image_size, require, text
from .keypoints import check_bones, check_object
from .masks import MASK_THRESHOLD, check_mask_pixels, fit_masks

FORMAT = "visionllm-nodes/1"
OF_DOCUMENT = " of this document"


def frame_record(
    width: int,
    height: int,
    boxes: Sequence[dict] = (),
    masks: torch.Tensor | None = None,
    keypoints: dict | None = None,
    text: str | None = None,
) -> dict:
    """Return the frame of one image.

    It has `boxes` with their `masks` [N, H, W], then the objects of one KEYPOINTS record, or only a text.
    """
    record: dict = {"width": int(width), "height": int(height)}
    if text is not None:
        record["text"] = text
    if keypoints is not None:
        record["skeleton"] = [[int(end) for end in bone] for bone in keypoints["skeleton"]]
    record["objects"] = [_object(box, None if masks is None else masks[index]) for index, box in enumerate(boxes)]
    if keypoints is not None:
        record["objects"] += [
            _object(obj["box"] | {"label": obj["label"], "score": obj["score"]}, points=obj["keypoints"])
            for obj in keypoints["objects"]
        ]
    return record


def write_document(task: str, prompt: str, frames: Sequence[dict], text: str | None = None) -> str:
    """Return the document as one line of JSON; the same results give the same line.

    frames: of `frame_record`. text: about all images, or about none.
    """
    record = {"format": FORMAT, "task": task, "prompt": prompt, "text": text, "frames": list(frames)}
    return json.dumps({name: value for name, value in record.items() if value is not None}, ensure_ascii=False)


@dataclass(frozen=True)
class Document:
    """A parsed document. `text`: about all images, or about none; empty where there is none."""

    task: str
    prompt: str
    text: str
    frames: list[dict]

    @property
    def texts(self) -> list[str]:
        """A text for each image: its own, else the one about all."""
        return [record.get("text", self.text) for record in self.frames] or [self.text]

    def bounding_boxes(self) -> list[list[dict]]:
        """Return BOUNDING_BOX of all objects but those that are only a point."""
        return [[_box(obj) for obj in record["objects"] if not _is_point(obj)] for record in self.frames]

    def keypoints(self) -> list[dict]:
        """Return KEYPOINTS of the objects that have some."""
        return [
            {
                "width": record["width"],
                "height": record["height"],
                "skeleton": record["skeleton"],
                "objects": [
                    {"label": "", "score": 1.0} | {name: value for name, value in obj.items() if name != "mask"}
                    for obj in record["objects"]
                    if "keypoints" in obj
                ],
            }
            for record in self.frames
        ]

    def masks(self) -> torch.Tensor | None:
        """Return masks [N, H, W], one per object of all images, in the size of the images.

        None where not every object has one, or images differ in size. Raises ValueError for more pixels than are made.
        """
        objects = [one for record in self.frames for one in record["objects"]]
        sizes = {(record["height"], record["width"]) for record in self.frames if record["objects"]}
        if len(sizes) != 1 or not all("mask" in one for one in objects):
            return None
        height, width = sizes.pop()
        check_mask_pixels(len(objects), height, width)
        masks = torch.zeros(len(objects), height, width)
        for mask, one in zip(masks, interruptible(objects), strict=True):
            mask.copy_(fit_masks(_decode_rle(one["mask"])[None], height, width)[0])
        return masks


def read_document(json_text: str | bytes) -> Document:
    """Parse a document. Raises ValueError with what is wrong, and where."""
    try:
        read = parse_json(json_text)
    except ValueError as error:
        raise ValueError(f"this is not valid JSON: {error}") from error
    if not isinstance(read, dict) or not str(read.get("format", "")).startswith(FORMAT.split("/")[0]):
        raise ValueError(f'this JSON is not a document of detections: it must be an object with "format": "{FORMAT}"')
    if read["format"] != FORMAT:
        raise ValueError(
            f"this document has the format {shown(read['format'])}, but this version of MuLan Nodes reads {FORMAT!r}: "
            f"update MuLan Nodes"
        )
    frames = entries(read.get("frames"), f"frames{OF_DOCUMENT}", "a list with an object for each image")
    checked = [_checked_frame(record, Place(f"frames[{index}]", OF_DOCUMENT)) for index, record in enumerate(frames)]
    task, prompt, about = (
        text(read[name], f"{name}{OF_DOCUMENT}") if read.get(name) is not None else ""
        for name in ("task", "prompt", "text")
    )
    return Document(task, prompt, about, checked)


def encode_rle(mask: torch.Tensor) -> dict:
    """Encode a mask [H, W] -> {"size": [height, width], "counts": run lengths, column by column, the first not set}."""
    flat = (mask.cpu().numpy() >= MASK_THRESHOLD).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flat)))).tolist() + [flat.size]
    return {"size": list(mask.shape), "counts": np.diff([0, *edges]).tolist()}


def _decode_rle(runs: dict) -> torch.Tensor:
    height, width = runs["size"]
    flat = np.repeat(np.arange(len(runs["counts"])) % 2 == 1, runs["counts"])
    return torch.from_numpy(flat.reshape(width, height).T.astype(np.float32, order="C"))


def _object(box: dict, mask: torch.Tensor | None = None, points: Sequence[dict] | None = None) -> dict:
    record: dict = {}
    if box.get("label"):
        record["label"] = box["label"]
    if "score" in box:
        record["score"] = round(float(box["score"]), 4)
    record["box"] = [round(float(box[side]), 2) for side in SIDES]
    if points is not None:
        record["keypoints"] = [
            {
                "name": point["name"],
                "x": round(float(point["x"]), 2),
                "y": round(float(point["y"]), 2),
                "score": round(float(point["score"]), 4),
            }
            for point in points
        ]
    if mask is not None:
        record["mask"] = encode_rle(mask)
    return record


def _box(obj: dict) -> dict:
    return obj["box"] | {name: obj[name] for name in ("label", "score") if name in obj}


def _is_point(obj: dict) -> bool:
    """Return whether an object is a keypoint, and its box has no side."""
    return len(obj.get("keypoints", ())) == 1 and not (obj["box"]["width"] or obj["box"]["height"] or "mask" in obj)


def _checked_frame(record, place: Place) -> dict:
    """Return a checked copy of a frame, in which boxes are dicts of their sides."""
    fields(record, place)
    width, height = image_size(record.get("width"), record.get("height"), place)
    checked: dict = {"width": width, "height": height}
    if record.get("text") is not None:
        checked["text"] = text(record["text"], place.at("text"))
    given = entries([] if record.get("objects") is None else record["objects"], place.at("objects"))
    objects = checked["objects"] = []
    for index, obj in enumerate(given):
        here = place.at("objects").at(index)
        objects.append(check_object(obj, here))
        if obj.get("mask") is not None:
            objects[-1]["mask"] = _checked_runs(obj["mask"], here.at("mask"))
    checked["skeleton"] = check_bones(record.get("skeleton"), place.at("skeleton"), objects)
    return checked


def _checked_runs(mask, place: Place) -> dict:
    expected = "an object of size [height, width] and counts, run lengths that fill it"
    size, counts = (entries(fields(mask, place, expected).get(name), place.at(name)) for name in ("size", "counts"))
    require(len(size) == 2, place.at("size"), "[height, width]", size)
    width, height = image_size(size[1], size[0], place)
    valid = all(type(count) is int and count >= 0 for count in counts) and sum(counts) == height * width
    require(valid, place, expected, mask)
    return {"size": [height, width], "counts": counts}
