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

from ...mulan.boundary.interrupts import interruptible
from ...mulan.boundary.values import shown
from .bounding_boxes import SIDES, bounding_box, pixel_bounds
from .checks import Place, entries, fields, image_size, number, position, require, text, whole_number
from .masks import NO_SIZE, check_mask_pixels
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
    """Return KEYPOINTS of a socket as a checked copy. Raises ValueError with what is wrong, and where.

    A label or an object's score may be missing: "" and 1.
    """
    frames = [value] if isinstance(value, dict) else value
    valid = isinstance(frames, (list, tuple)) and all(
        isinstance(frame, dict) and {"width", "height", "objects", "skeleton"} <= frame.keys() for frame in frames
    )
    if not valid:
        raise ValueError(
            'they must be a list with a dict of "width", "height", "objects" and "skeleton" for each image; '
            f"this is {shown(value)}"
        )
    return [_checked_frame(frame, Place(f"keypoints[{index}]")) for index, frame in enumerate(frames)]


def check_object(obj, place: Place) -> dict:
    """Return a checked copy of one object: its box, and label, score and keypoints where it has them."""
    fields(obj, place)
    checked: dict = {"label": text(obj["label"], place.at("label"))} if obj.get("label") is not None else {}
    if obj.get("score") is not None:
        checked["score"] = number(obj["score"], place.at("score"))
    checked["box"] = _checked_sides(obj.get("box"), place.at("box"))
    if obj.get("keypoints") is not None:
        points = interruptible(entries(obj["keypoints"], place.at("keypoints")))
        checked["keypoints"] = [_checked_point(point, place.at("keypoints").at(i)) for i, point in enumerate(points)]
    return checked


def check_bones(value, place: Place, objects: Sequence[dict]) -> list[list[int]]:
    """Return the bones between keypoints of checked objects: an object may lack some of them."""
    count = max((len(obj["keypoints"]) for obj in objects if "keypoints" in obj), default=0)
    bones = []
    for index, bone in enumerate(entries(() if value is None else value, place, "a list of pairs")):
        here, expected = place.at(index), "two indices of keypoints"
        ends = [whole_number(end, here.at(side)) for side, end in enumerate(entries(bone, here, expected))]
        if len(ends) != 2 or (objects and max(ends) >= count):
            raise ValueError(f"{here} must be {expected}, and an object has {count}; it is {str(ends)[:40]}")
        bones.append(ends)
    return bones


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
    chosen = [
        [(obj, points) for obj in frame["objects"] if (points := select_keypoints(obj, names, threshold))]
        for frame in frames
    ]
    height, width = (frames[0]["height"], frames[0]["width"]) if frames else NO_SIZE
    count = sum(map(len, chosen))
    check_mask_pixels(len(frames) + count, height, width)
    union, each = torch.zeros(max(1, len(frames)), height, width), torch.zeros(max(1, count), height, width)
    masks = iter(each)
    for frame, objects, whole in zip(frames, chosen, union, strict=False):  # one empty mask where there is no image
        for obj, points in interruptible(objects):
            mask = next(masks).copy_(_mask(obj, points, frame, shape, margin))
            torch.maximum(whole, mask, out=whole)
    return union, each


def points_json(points: Iterable[dict]) -> str:
    """Return points as the JSON STRING of SAM-style nodes: [{"x": 12, "y": 34}, ...], whole pixels."""
    return json.dumps([{"x": round(point["x"]), "y": round(point["y"])} for point in points])


def point_bounds(points: Sequence[dict], margin: float = 0.0) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 around points."""
    xs, ys = [point["x"] for point in points], [point["y"] for point in points]
    return min(xs) - margin, min(ys) - margin, max(xs) + margin, max(ys) + margin


def _checked_frame(frame: dict, place: Place) -> dict:
    width, height = image_size(frame["width"], frame["height"], place)
    given = entries(() if frame["objects"] is None else frame["objects"], place.at("objects"))
    objects = []
    for index, obj in enumerate(given):
        checked = {"label": "", "score": 1.0} | check_object(obj, place.at("objects").at(index))
        require("keypoints" in checked, place.at("objects").at(index).at("keypoints"), "a list", None)
        objects.append(checked)
    bones = check_bones(frame["skeleton"], place.at("skeleton"), objects)
    return {"width": width, "height": height, "objects": objects, "skeleton": bones}


def _checked_sides(value, place: Place) -> dict:
    """Return the box of a dict of its sides, or of a list of them."""
    expected = f"four numbers {', '.join(SIDES)}"
    given = [value.get(side) for side in SIDES] if isinstance(value, dict) else entries(value, place, expected)
    require(len(given) == 4, place, expected, value)
    box = {name: number(side, place.at(name)) for name, side in zip(SIDES, given, strict=True)}
    for name in SIDES[2:]:
        require(box[name] >= 0, place.at(name), "0 or above", box[name])
    return box


def _checked_point(point, place: Place) -> dict:
    expected = "an object of name, x, y and score"
    require(isinstance(point, dict) and {"name", "x", "y", "score"} <= point.keys(), place, expected, point)
    return {
        "name": text(point["name"], place.at("name")),
        "x": position(point["x"], place.at("x")),
        "y": position(point["y"], place.at("y")),
        "score": number(point["score"], place.at("score")),
    }


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
    for line in interruptible(lines):
        if reaches(line, canvas.size, line_width):
            pen.line(line, fill=1, width=line_width)
    for x, y in interruptible(positions):
        if reaches([(x, y)], canvas.size, margin):
            pen.ellipse((x - margin, y - margin, x + margin, y + margin), fill=1)
    mask = torch.from_numpy(np.array(canvas, dtype=np.float32))
    if not mask.any():  # a point on the very edge, without a margin
        pixels = pixel_bounds(
            {"x": positions[0][0], "y": positions[0][1], "width": 0, "height": 0}, frame["height"], frame["width"], 1
        )
        if pixels:
            mask[pixels[1] : pixels[3], pixels[0] : pixels[2]] = 1
    return mask


def reaches(points: Sequence[tuple[float, float]], size: tuple[int, int], around: float) -> bool:
    """Return whether the rectangle around points, `around` pixels larger, reaches into an image of width and height."""
    return all(
        max(side) + around >= -1 and min(side) - around <= limit + 1
        for side, limit in zip(zip(*points, strict=True), size, strict=True)
    )


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
