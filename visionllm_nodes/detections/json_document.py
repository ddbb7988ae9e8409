"""Answers as one JSON document, for files, other programs and the history:

{"format": "visionllm-nodes/1", "task": "detect", "prompt": "dog, cat", "frames": [
  {"width": 640, "height": 480, "text": "...", "skeleton": [[0, 1], ...], "objects": [
    {"label": "dog", "score": 0.9134, "box": [x, y, width, height],
     "keypoints": [{"name": "nose", "x": 1.5, "y": 2.0, "score": 1.0}, ...], "mask": {"size": [480, 640], "counts": [...]}}]}]}

One frame for each picture; a text about several pictures together, or without any, stands as "text" beside "frames". Pixels have two
decimals, scores four. Masks are run lengths as COCO writes them uncompressed: column by column, the first run not set. "text",
"skeleton", "label", "score", "keypoints" and "mask" stand only where there is something to say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .masks import SET

FORMAT = "visionllm-nodes/1"
SIDES = ("x", "y", "width", "height")


def frame(
    width: int,
    height: int,
    boxes: Sequence[dict] = (),
    masks: torch.Tensor | None = None,
    keypoints: dict | None = None,
    text: str | None = None,
) -> dict:
    """What a document says of one picture: `boxes` with their `masks` [N, H, W], or the objects of one KEYPOINTS record, or only a text."""
    record: dict = {"width": int(width), "height": int(height)}
    if text is not None:
        record["text"] = text
    if keypoints is not None:
        record["skeleton"] = [[int(end) for end in bone] for bone in keypoints["skeleton"]]
        record["objects"] = [
            _object(thing["box"] | {"label": thing["label"], "score": thing["score"]}, points=thing["keypoints"])
            for thing in keypoints["objects"]
        ]
    else:
        record["objects"] = [_object(box, None if masks is None else masks[number]) for number, box in enumerate(boxes)]
    return record


def document(task: str, prompt: str, frames: Sequence[dict], text: str | None = None) -> str:
    """One line of JSON; `frames` come from `frame`; `text` is about all of them, or about none. The same answers give the same text."""
    record = {"format": FORMAT, "task": task, "prompt": prompt, "text": text, "frames": list(frames)}
    return json.dumps({name: value for name, value in record.items() if value is not None}, ensure_ascii=False)


@dataclass(frozen=True)
class Document:
    """A document that was read. `frames` are as in the text; `text` is about all pictures, or about none, and empty where there is none."""

    task: str
    prompt: str
    text: str
    frames: list[dict]

    @property
    def texts(self) -> list[str]:
        """A text for each picture: its own, else the one about all."""
        return [record.get("text", self.text) for record in self.frames] or [self.text]

    def bounding_boxes(self) -> list[list[dict]]:
        return [[_box(thing) for thing in record["objects"]] for record in self.frames]

    def keypoints(self) -> list[dict]:
        """KEYPOINTS of the objects that have some."""
        return [
            {
                "width": record["width"],
                "height": record["height"],
                "skeleton": record.get("skeleton", []),
                "objects": [
                    {
                        "label": thing.get("label", ""),
                        "score": thing.get("score", 1.0),
                        "box": dict(zip(SIDES, thing["box"])),
                        "keypoints": thing["keypoints"],
                    }
                    for thing in record["objects"]
                    if "keypoints" in thing
                ],
            }
            for record in self.frames
        ]

    def masks(self) -> torch.Tensor | None:
        """[N, H, W], one for each object of all pictures; None where not every object has one of one size."""
        masks = [_unpacked(thing["mask"]) for record in self.frames for thing in record["objects"] if "mask" in thing]
        whole = sum(len(record["objects"]) for record in self.frames)
        return (
            torch.stack(masks) if masks and len(masks) == whole and len({mask.shape for mask in masks}) == 1 else None
        )


def read_document(text: str) -> Document:
    """Raises ValueError that says what is wrong, and where."""
    try:
        read = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"this is no JSON: {error}") from error
    if not isinstance(read, dict) or not str(read.get("format", "")).startswith(FORMAT.split("/")[0]):
        raise ValueError(f'this JSON is no document of detections: it must be an object with "format": "{FORMAT}"')
    if read["format"] != FORMAT:
        raise ValueError(
            f"this document has the format {read['format']!r}, and this version of MuLan Nodes knows {FORMAT!r}: update MuLan Nodes"
        )
    frames = read.get("frames")
    _is(isinstance(frames, list), "frames", "a list with an object for each picture")
    checked = [_checked_frame(record, f"frames[{number}]") for number, record in enumerate(frames)]
    return Document(*(str(read.get(name) or "") for name in ("task", "prompt", "text")), checked)


def packed(mask: torch.Tensor) -> dict:
    """[H, W] -> {"size": [height, width], "counts": run lengths, column by column, the first run not set}."""
    flat = (mask.cpu().numpy() >= SET).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flat)))).tolist() + [flat.size]
    return {"size": list(mask.shape), "counts": np.diff([0, *edges]).tolist()}


def _unpacked(runs: dict) -> torch.Tensor:
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
        record["mask"] = packed(mask)
    return record


def _box(thing: dict) -> dict:
    return dict(zip(SIDES, map(float, thing["box"]))) | {
        name: thing[name] for name in ("label", "score") if name in thing
    }


def _checked_frame(record, where: str) -> dict:
    _is(isinstance(record, dict), where, "an object")
    for side in ("width", "height"):
        _is(_whole(record.get(side)) and record[side] > 0, f"{where}.{side}", "a whole number above 0")
    _is(isinstance(record.get("text", ""), str), f"{where}.text", "a text")
    objects = record.get("objects", [])
    _is(isinstance(objects, list), f"{where}.objects", "a list")
    for number, thing in enumerate(objects):
        _check_object(thing, f"{where}.objects[{number}]")
    most = min((len(thing["keypoints"]) for thing in objects if "keypoints" in thing), default=0)
    bones = record.get("skeleton", [])
    _is(isinstance(bones, list), f"{where}.skeleton", "a list of pairs")
    for number, bone in enumerate(bones):
        _is(
            isinstance(bone, list)
            and len(bone) == 2
            and all(_whole(end) and end >= 0 and (end < most or not objects) for end in bone),
            f"{where}.skeleton[{number}]",
            "two positions of keypoints",
        )
    return {**record, "objects": objects}


def _check_object(thing, where: str) -> None:
    _is(isinstance(thing, dict), where, "an object")
    box = thing.get("box")
    _is(
        isinstance(box, list) and len(box) == 4 and all(map(_number, box)) and min(box[2:]) >= 0,
        f"{where}.box",
        "four numbers x, y, width, height",
    )
    _is(isinstance(thing.get("label", ""), str), f"{where}.label", "a text")
    _is(_number(thing.get("score", 0)), f"{where}.score", "a number")
    points = thing.get("keypoints", [])
    _is(isinstance(points, list), f"{where}.keypoints", "a list")
    for number, point in enumerate(points):
        good = (
            isinstance(point, dict)
            and isinstance(point.get("name"), str)
            and all(_number(point.get(key)) for key in ("x", "y", "score"))
        )
        _is(good, f"{where}.keypoints[{number}]", "an object of name, x, y and score")
    if "mask" in thing:
        runs = thing["mask"]
        good = isinstance(runs, dict) and all(
            isinstance(runs.get(key), list) and all(_whole(number) and number >= 0 for number in runs[key])
            for key in ("size", "counts")
        )
        _is(
            good and len(runs["size"]) == 2 and sum(runs["counts"]) == runs["size"][0] * runs["size"][1],
            f"{where}.mask",
            "an object of size [height, width] and counts, run lengths that fill it",
        )


def _is(good: bool, where: str, expected: str) -> None:
    if not good:
        raise ValueError(f"{where} of this document must be {expected}")


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
