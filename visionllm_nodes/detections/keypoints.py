"""KEYPOINTS of any skeleton: a dict for each image, everything in pixels.

{"width", "height", "skeleton": [[i, j], ...],  # bones: pairs of indices into an object's keypoints
 "objects": [{"label", "score", "box": {"x", "y", "width", "height"},
              "keypoints": [{"name", "x", "y", "score"}, ...]}, ...]}

A keypoint whose score is 0 was not found and has no position. OpenPose's own form is in pose_keypoint.py.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.spatial import ConvexHull, QhullError

from .bounding_boxes import bounding_box, pixel_bounds
from .names import normalize_name
from .results import Keypoints

POINTS, BONES, HULL = SHAPES = ("points", "bones", "hull")


def to_keypoints(results: Sequence[Keypoints], bones: Iterable[Sequence[int]]) -> list[dict]:
    """Return a record per image. The model scores objects, not their keypoints: those have the score 1."""
    skeleton = [list(bone) for bone in bones]
    return [
        {"width": one.size[1], "height": one.size[0], "objects": _objects(one), "skeleton": skeleton} for one in results
    ]


def check_keypoints(value) -> list[dict]:
    """Return KEYPOINTS of a socket. Raises ValueError where it is something else."""
    valid = isinstance(value, list) and all(
        isinstance(frame, dict) and {"width", "height", "objects", "skeleton"} <= frame.keys() for frame in value
    )
    if not valid:
        raise ValueError(
            'keypoints must be a list with a dict of "width", "height", "objects" and "skeleton" for each image'
        )
    return value


def select_keypoints(obj: dict, names: Collection[str], threshold: float) -> list[dict]:
    """Return an object's keypoints with at least this score; where names are given, only those (in any spelling)."""
    wanted = {normalize_name(name) for name in names}
    return [
        point
        for point in obj["keypoints"]
        if point["score"] > 0
        and point["score"] >= threshold
        and (not wanted or normalize_name(point["name"]) in wanted)
    ]


def check_keypoint_names(frames: Sequence[dict], names: Collection[str]) -> None:
    """Raise ValueError for a name that no object's keypoint has, so that a typo is not an empty result."""
    known = {
        normalize_name(point["name"]): point["name"]
        for frame in frames
        for obj in frame["objects"]
        for point in obj["keypoints"]
    }
    for name in names:
        if known and normalize_name(name) not in known:
            raise ValueError(f"no keypoint is named {name!r}; the names are {', '.join(known.values())}")


def keypoint_boxes(
    frames: Sequence[dict], names: Collection[str] = (), threshold: float = 0.0, margin: float = 0.0
) -> list[list[dict]]:
    """Return BOUNDING_BOX around each object's selected keypoints, if it has any, `margin` pixels larger per side."""
    boxes_per_image = []
    for frame in frames:
        boxes = []
        for obj in frame["objects"]:
            points = select_keypoints(obj, names, threshold)
            if points:
                boxes.append(
                    bounding_box(
                        point_bounds(points, margin), (frame["height"], frame["width"]), obj["label"], obj["score"]
                    )
                )
        boxes_per_image.append(boxes)
    return boxes_per_image


def keypoint_masks(
    frames: Sequence[dict], shape: str, names: Collection[str] = (), threshold: float = 0.0, margin: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw masks of the same objects as `keypoint_boxes` -> (union [B, H, W], each [N, H, W]).

    shape: discs on the points, the bones between them, or the hull around them, all `margin` pixels wide to each side.
    Without an object, `each` is a single empty mask. All images must have one size.
    """
    for_each_image, union = [], []
    for frame in frames:
        drawn = []
        for obj in frame["objects"]:
            points = select_keypoints(obj, names, threshold)
            if points:
                drawn.append(_mask(obj, points, frame, shape, margin))
        for_each_image += drawn
        union.append(torch.stack(drawn).amax(0) if drawn else torch.zeros(frame["height"], frame["width"]))
    return torch.stack(union), torch.stack(for_each_image) if for_each_image else torch.zeros_like(union[0])[None]


def points_json(points: Iterable[dict]) -> str:
    """Return points as the JSON STRING of SAM-style nodes: [{"x": 12, "y": 34}, ...], whole pixels."""
    return json.dumps([{"x": round(point["x"]), "y": round(point["y"])} for point in points])


def point_bounds(points: Sequence[dict], margin: float = 0.0) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 around points."""
    xs, ys = [point["x"] for point in points], [point["y"] for point in points]
    return min(xs) - margin, min(ys) - margin, max(xs) + margin, max(ys) + margin


def _objects(result: Keypoints) -> list[dict]:
    objects = []
    for label, score, box, points in zip(
        result.labels.tolist(), result.scores.tolist(), result.boxes.tolist(), result.keypoints.tolist(), strict=True
    ):
        record = bounding_box(box, result.size, result.names[label], score)
        named = [
            {"name": name, "x": x, "y": y, "score": 1.0}
            for name, (x, y) in zip(result.keypoint_names, points, strict=True)
        ]
        objects.append({"label": record.pop("label"), "score": record.pop("score"), "box": record, "keypoints": named})
    return objects


def _mask(obj: dict, points: Sequence[dict], frame: dict, shape: str, margin: float) -> torch.Tensor:
    """Draw the mask of one object, float32 [H, W]."""
    canvas = Image.new("1", (frame["width"], frame["height"]))
    pen, line_width = ImageDraw.Draw(canvas), max(1, round(2 * margin) + 1)
    positions = [(point["x"], point["y"]) for point in points]
    lines = []
    if shape == BONES:
        kept = {id(point) for point in points}
        keypoints = obj["keypoints"]
        lines = [
            (keypoints[a], keypoints[b])
            for a, b in frame["skeleton"]
            if max(a, b) < len(keypoints) and id(keypoints[a]) in kept and id(keypoints[b]) in kept
        ]
        lines = [((a["x"], a["y"]), (b["x"], b["y"])) for a, b in lines]
    elif shape == HULL and len(positions) > 1:
        hull = convex_hull(positions)
        lines = list(zip(hull, hull[1:] + hull[:1], strict=True))
        if len(hull) > 2:
            pen.polygon(hull, fill=1)
    for line in lines:
        pen.line(line, fill=1, width=line_width)
    for x, y in positions:
        pen.ellipse((x - margin, y - margin, x + margin, y + margin), fill=1)
    mask = torch.from_numpy(np.array(canvas, dtype=np.float32))
    if not mask.any():  # a point on the very edge, without a margin
        pixels = pixel_bounds(
            {"x": positions[0][0], "y": positions[0][1], "width": 0, "height": 0}, frame["height"], frame["width"], 1
        )
        if pixels:
            mask[pixels[1] : pixels[3], pixels[0] : pixels[2]] = 1
    return mask


def convex_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of the convex hull, around once; the two ends where all points lie on one line."""
    ordered = sorted(set(points))
    if len(ordered) < 3:
        return ordered
    try:
        corners = ConvexHull(np.array(ordered)).vertices
    except QhullError:
        return [ordered[0], ordered[-1]]
    return [ordered[corner] for corner in np.roll(corners, -int(corners.argmin()))]
