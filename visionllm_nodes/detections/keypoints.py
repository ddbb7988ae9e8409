"""KEYPOINTS, any skeleton's: a dict for each picture, everything in pixels:

{"width", "height", "skeleton": [[i, j], ...],  # bones: pairs of positions in an object's keypoints
 "objects": [{"label", "score", "box": {"x", "y", "width", "height"}, "keypoints": [{"name", "x", "y", "score"}, ...]}, ...]}

A keypoint whose score is 0 was not found and has no place. OpenPose's own form is in pose_keypoint.py.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from .bounding_boxes import bounding_box, whole_pixels
from .results import Keypoints
from .skeletons import plain_name

POINTS, BONES, HULL = SHAPES = ("points", "bones", "hull")


def to_keypoints(found: Sequence[Keypoints], bones: Iterable[Sequence[int]]) -> list[dict]:
    """A record for each picture. The model tells a score of each object, none of its keypoints: they have the score 1."""
    skeleton = [list(bone) for bone in bones]
    return [
        {"width": one.size[1], "height": one.size[0], "objects": _objects(one), "skeleton": skeleton} for one in found
    ]


def checked(value) -> list[dict]:
    """KEYPOINTS that came in over a wire; ValueError where it is none."""
    whole = isinstance(value, list) and all(
        isinstance(frame, dict) and {"width", "height", "objects", "skeleton"} <= frame.keys() for frame in value
    )
    if not whole:
        raise ValueError(
            'keypoints must be a list with a dict of "width", "height", "objects" and "skeleton" for each picture'
        )
    return value


def chosen(thing: dict, names: Collection[str], threshold: float) -> list[dict]:
    """An object's keypoints that were found with at least this score; where names are given, only those (in any spelling)."""
    wanted = {plain_name(name) for name in names}
    return [
        point
        for point in thing["keypoints"]
        if point["score"] > 0 and point["score"] >= threshold and (not wanted or plain_name(point["name"]) in wanted)
    ]


def check_names(frames: Sequence[dict], names: Collection[str]) -> None:
    """Raises ValueError for a name that no object's keypoint has, so that a slip of the pen is not an empty answer."""
    known = {
        plain_name(point["name"]): point["name"]
        for frame in frames
        for thing in frame["objects"]
        for point in thing["keypoints"]
    }
    for name in names:
        if known and plain_name(name) not in known:
            raise ValueError(f"no keypoint is called {name!r}; there are {', '.join(known.values())}")


def keypoint_boxes(
    frames: Sequence[dict], names: Collection[str] = (), threshold: float = 0.0, margin: float = 0.0
) -> list[list[dict]]:
    """BOUNDING_BOX around the chosen keypoints of each object that has one of them, `margin` pixels larger on each side."""
    found = []
    for frame in frames:
        boxes = []
        for thing in frame["objects"]:
            points = chosen(thing, names, threshold)
            if points:
                boxes.append(
                    bounding_box(
                        bounds(points, margin), (frame["height"], frame["width"]), thing["label"], thing["score"]
                    )
                )
        found.append(boxes)
    return found


def keypoint_masks(
    frames: Sequence[dict], shape: str, names: Collection[str] = (), threshold: float = 0.0, margin: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the same objects as `keypoint_boxes` -> (union [B, H, W], each [N, H, W]; a single empty one where there is none).

    `shape`: discs on the points, the bones between them, or the hull around them, all `margin` pixels wide to each side.
    All pictures must have one size.
    """
    each, union = [], []
    for frame in frames:
        drawn = []
        for thing in frame["objects"]:
            points = chosen(thing, names, threshold)
            if points:
                drawn.append(_mask(thing, points, frame, shape, margin))
        each += drawn
        union.append(torch.stack(drawn).amax(0) if drawn else torch.zeros(frame["height"], frame["width"]))
    return torch.stack(union), torch.stack(each) if each else torch.zeros_like(union[0])[None]


def coordinates(points: Iterable[dict]) -> str:
    """Points as the JSON STRING of SAM-style nodes: [{"x": 12, "y": 34}, ...], whole pixels."""
    return json.dumps([{"x": round(point["x"]), "y": round(point["y"])} for point in points])


def bounds(points: Sequence[dict], margin: float = 0.0) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 around points."""
    xs, ys = [point["x"] for point in points], [point["y"] for point in points]
    return min(xs) - margin, min(ys) - margin, max(xs) + margin, max(ys) + margin


def _objects(found: Keypoints) -> list[dict]:
    objects = []
    for label, score, box, points in zip(
        found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), found.keypoints.tolist()
    ):
        whole = bounding_box(box, found.size, found.names[label], score)
        named = [{"name": name, "x": x, "y": y, "score": 1.0} for name, (x, y) in zip(found.keypoint_names, points)]
        objects.append({"label": whole.pop("label"), "score": whole.pop("score"), "box": whole, "keypoints": named})
    return objects


def _mask(thing: dict, points: Sequence[dict], frame: dict, shape: str, margin: float) -> torch.Tensor:
    """float32 [H, W] of one object."""
    canvas = Image.new("1", (frame["width"], frame["height"]))
    pen, wide = ImageDraw.Draw(canvas), max(1, round(2 * margin) + 1)
    at = [(point["x"], point["y"]) for point in points]
    lines = []
    if shape == BONES:
        kept = {id(point) for point in points}
        of = thing["keypoints"]
        lines = [
            (of[a], of[b])
            for a, b in frame["skeleton"]
            if max(a, b) < len(of) and id(of[a]) in kept and id(of[b]) in kept
        ]
        lines = [((a["x"], a["y"]), (b["x"], b["y"])) for a, b in lines]
    elif shape == HULL and len(at) > 1:
        around = _hull(at)
        lines = list(zip(around, around[1:] + around[:1]))
        if len(around) > 2:
            pen.polygon(around, fill=1)
    for line in lines:
        pen.line(line, fill=1, width=wide)
    for x, y in at:
        pen.ellipse((x - margin, y - margin, x + margin, y + margin), fill=1)
    mask = torch.from_numpy(np.array(canvas, dtype=np.float32))
    if not mask.any():  # a point on the very edge, without a margin
        pixels = whole_pixels(
            dict(zip(("x", "y", "width", "height"), (at[0][0], at[0][1], 0, 0))), frame["height"], frame["width"], 1
        )
        if pixels:
            mask[pixels[1] : pixels[3], pixels[0] : pixels[2]] = 1
    return mask


def _hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The convex hull, around once."""
    ordered = sorted(set(points))
    if len(ordered) < 3:
        return ordered
    halves = []
    for run in (ordered, ordered[::-1]):
        half: list[tuple[float, float]] = []
        for x, y in run:
            while (
                len(half) > 1
                and ((half[-1][0] - half[-2][0]) * (y - half[-2][1]) - (half[-1][1] - half[-2][1]) * (x - half[-2][0]))
                <= 0
            ):
                half.pop()
            half.append((x, y))
        halves.append(half[:-1])
    return halves[0] + halves[1]
