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
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .masks import MASK_THRESHOLD

FORMAT = "visionllm-nodes/1"
SIDES = ("x", "y", "width", "height")


def frame_record(
    width: int,
    height: int,
    boxes: Sequence[dict] = (),
    masks: torch.Tensor | None = None,
    keypoints: dict | None = None,
    text: str | None = None,
) -> dict:
    """Return the frame of one image.

    It has `boxes` with their `masks` [N, H, W], or the objects of one KEYPOINTS record, or only a text.
    """
    record: dict = {"width": int(width), "height": int(height)}
    if text is not None:
        record["text"] = text
    if keypoints is not None:
        record["skeleton"] = [[int(end) for end in bone] for bone in keypoints["skeleton"]]
        record["objects"] = [
            _object(obj["box"] | {"label": obj["label"], "score": obj["score"]}, points=obj["keypoints"])
            for obj in keypoints["objects"]
        ]
    else:
        record["objects"] = [_object(box, None if masks is None else masks[index]) for index, box in enumerate(boxes)]
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
        """Return BOUNDING_BOX of all objects."""
        return [[_box(obj) for obj in record["objects"]] for record in self.frames]

    def keypoints(self) -> list[dict]:
        """Return KEYPOINTS of the objects that have some."""
        return [
            {
                "width": record["width"],
                "height": record["height"],
                "skeleton": record.get("skeleton", []),
                "objects": [
                    {
                        "label": obj.get("label", ""),
                        "score": obj.get("score", 1.0),
                        "box": dict(zip(SIDES, obj["box"], strict=True)),
                        "keypoints": obj["keypoints"],
                    }
                    for obj in record["objects"]
                    if "keypoints" in obj
                ],
            }
            for record in self.frames
        ]

    def masks(self) -> torch.Tensor | None:
        """Return masks [N, H, W], one per object of all images; None where not every object has one of one size."""
        objects = [one for record in self.frames for one in record["objects"]]
        masks = [_decode_rle(one["mask"]) for one in objects if "mask" in one]
        complete = masks and len(masks) == len(objects) and len({mask.shape for mask in masks}) == 1
        return torch.stack(masks) if complete else None


def read_document(text: str) -> Document:
    """Parse a document. Raises ValueError with what is wrong, and where."""
    try:
        read = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"this is not valid JSON: {error}") from error
    if not isinstance(read, dict) or not str(read.get("format", "")).startswith(FORMAT.split("/")[0]):
        raise ValueError(f'this JSON is not a document of detections: it must be an object with "format": "{FORMAT}"')
    if read["format"] != FORMAT:
        raise ValueError(
            f"this document has the format {read['format']!r}, but this version of MuLan Nodes reads {FORMAT!r}: "
            f"update MuLan Nodes"
        )
    frames = read.get("frames")
    if not isinstance(frames, list):
        raise ValueError("frames of this document must be a list with an object for each image")
    checked = [_checked_frame(record, f"frames[{index}]") for index, record in enumerate(frames)]
    task, prompt, text = (str(read.get(name) or "") for name in ("task", "prompt", "text"))
    return Document(task, prompt, text, checked)


def encode_rle(mask: torch.Tensor) -> dict:
    """Encode a mask [H, W] -> {"size": [height, width], "counts": run lengths, column by column, the first not set}."""
    flat = (mask.cpu().numpy() >= MASK_THRESHOLD).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flat)))).tolist() + [flat.size]
    return {"size": list(mask.shape), "counts": np.diff([0, *edges]).tolist()}


def _decode_rle(runs: dict) -> torch.Tensor:
    height, width = runs["size"]
    flat = np.repeat(np.arange(len(runs["counts"])) % 2, runs["counts"]).astype(np.float32)
    return torch.from_numpy(flat.reshape(width, height).T.copy())


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
    return dict(zip(SIDES, map(float, obj["box"]), strict=True)) | {
        name: obj[name] for name in ("label", "score") if name in obj
    }


def _checked_frame(record, where: str) -> dict:
    _require(isinstance(record, dict), where, "an object")
    for side in ("width", "height"):
        _require(_is_integer(record.get(side)) and record[side] > 0, f"{where}.{side}", "a whole number above 0")
    _require(isinstance(record.get("text", ""), str), f"{where}.text", "a string")
    objects = record.get("objects", [])
    _require(isinstance(objects, list), f"{where}.objects", "a list")
    for index, obj in enumerate(objects):
        _check_object(obj, f"{where}.objects[{index}]")
    count = min((len(obj["keypoints"]) for obj in objects if "keypoints" in obj), default=0)
    bones = record.get("skeleton", [])
    _require(isinstance(bones, list), f"{where}.skeleton", "a list of pairs")
    for index, bone in enumerate(bones):
        _require(
            isinstance(bone, list)
            and len(bone) == 2
            and all(_is_integer(end) and end >= 0 and (end < count or not objects) for end in bone),
            f"{where}.skeleton[{index}]",
            "two indices of keypoints",
        )
    return {**record, "objects": objects}


def _check_object(obj, where: str) -> None:
    _require(isinstance(obj, dict), where, "an object")
    box = obj.get("box")
    _require(
        isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0,
        f"{where}.box",
        "four numbers x, y, width, height",
    )
    _require(isinstance(obj.get("label", ""), str), f"{where}.label", "a string")
    _require(_is_number(obj.get("score", 0)), f"{where}.score", "a number")
    points = obj.get("keypoints", [])
    _require(isinstance(points, list), f"{where}.keypoints", "a list")
    for index, point in enumerate(points):
        valid = (
            isinstance(point, dict)
            and isinstance(point.get("name"), str)
            and all(_is_number(point.get(key)) for key in ("x", "y", "score"))
        )
        _require(valid, f"{where}.keypoints[{index}]", "an object of name, x, y and score")
    if "mask" in obj:
        runs = obj["mask"]
        valid = isinstance(runs, dict) and all(
            isinstance(runs.get(key), list) and all(_is_integer(number) and number >= 0 for number in runs[key])
            for key in ("size", "counts")
        )
        _require(
            valid and len(runs["size"]) == 2 and sum(runs["counts"]) == runs["size"][0] * runs["size"][1],
            f"{where}.mask",
            "an object of size [height, width] and counts, run lengths that fill it",
        )


def _require(valid: bool, where: str, expected: str) -> None:
    if not valid:
        raise ValueError(f"{where} of this document must be {expected}")


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
