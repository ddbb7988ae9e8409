"""Boxes, masks and keypoints of tracks: named in every frame, filled between sightings, smoothed over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from .bounding_boxes import SIDES, box_corners, box_score
from .masks import boxes_to_masks, check_mask_pixels
from .tracking import Track


class Sighting(NamedTuple):
    """An object in a frame: its track's index, its place among the frame's boxes (None: filled in), and its box."""

    track: int
    place: int | None
    box: dict


def name_tracks(tracks: Sequence[Track]) -> list[str]:
    """Return the label of each track with its number among those of this label: dog 1, dog 2."""
    counts: Counter[str] = Counter()
    names = []
    for track in tracks:
        counts[track.label] += 1
        names.append(f"{track.label} {counts[track.label]}".strip())
    return names


def follow_boxes(
    frames: Sequence[Sequence[dict]], tracks: Sequence[Track], names: Sequence[str], max_gap: int, smooth: float
) -> list[list[Sighting]]:
    """Return the objects of each frame, in the order of their tracks; boxes keep what else they hold.

    max_gap: gaps of so many frames are filled.
    """
    seen: list[list[Sighting]] = [[] for _ in frames]
    for index, (track, name) in enumerate(zip(tracks, names, strict=True)):
        boxes = [frames[frame][place] for frame, place in zip(track.frames, track.places, strict=True)]
        corners = np.array([box_corners(box) for box in boxes], float)
        scores = interpolate(track.frames, np.array([[box_score(box)] for box in boxes]))
        place_of = dict(zip(track.frames, track.places, strict=True))
        away = {
            frame
            for before, after in pairwise(track.frames)
            if after - before - 1 > max_gap
            for frame in range(before + 1, after)
        }
        for offset, (x1, y1, x2, y2) in enumerate(interpolate(track.frames, corners, smooth).tolist()):
            frame = track.frames[0] + offset
            place = place_of.get(frame)
            if frame in away:
                continue
            before = {"score": float(scores[offset, 0])} if place is None else frames[frame][place]
            sides = dict(zip(SIDES, (x1, y1, x2 - x1, y2 - y1), strict=True))
            seen[frame].append(Sighting(index, place, {**before, **sides, "label": name}))
    return seen


def interpolate(frames: Sequence[int], values: np.ndarray, smooth: float = 0.0) -> np.ndarray:
    """Return values [N, C] of a few frames for every frame from the first to the last.

    smooth: the standard deviation of the Gaussian over time, in frames.
    """
    every = np.arange(frames[0], frames[-1] + 1)
    whole = np.stack([np.interp(every, frames, column) for column in values.T], axis=1)
    return gaussian_filter1d(whole, smooth, axis=0, mode="nearest") if smooth else whole


def follow_masks(seen: Sequence[Sequence[Sighting]], masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a mask for each object of all frames [N, H, W], from the masks [n, H, W] of each frame's boxes.

    Where an object was filled in it is its filled box. Without objects it is a single empty one.
    """
    height, width = masks[0].shape[1:]
    count = sum(map(len, seen))
    check_mask_pixels(count, height, width)
    followed = torch.zeros(max(1, count), height, width)
    rows = iter(followed)
    for objects, of_frame in zip(seen, masks, strict=True):
        for one in objects:
            next(rows).copy_(
                boxes_to_masks([[one.box]], height, width)[0][0] if one.place is None else of_frame[one.place]
            )
    return followed


def follow_keypoints(
    records: Sequence[dict], seen: Sequence[Sequence[Sighting]], fill: bool, smooth: float
) -> list[dict]:
    """Return KEYPOINTS records with the objects of `seen`; keypoints are filled and smoothed as boxes are."""
    sightings: dict[int, dict[int, dict]] = {}
    for frame, objects in enumerate(seen):
        for one in objects:
            if one.place is not None:
                sightings.setdefault(one.track, {})[frame] = records[frame]["objects"][one.place]
    points = {track: _follow_points(of_track, fill, smooth) for track, of_track in sightings.items()}
    return [
        record
        | {
            "objects": [
                {
                    "label": one.box["label"],
                    "score": one.box["score"],
                    "box": {side: one.box[side] for side in SIDES},
                    "keypoints": points[one.track][frame],
                }
                for one in objects
            ]
        }
        for frame, (record, objects) in enumerate(zip(records, seen, strict=True))
    ]


def _follow_points(objects: dict[int, dict], fill: bool, smooth: float) -> dict[int, list[dict]]:
    """Return the keypoints of one object in every frame from its first to its last sighting."""
    first, last = min(objects), max(objects)
    names = [point["name"] for point in objects[first]["keypoints"]]
    if any([point["name"] for point in obj["keypoints"]] != names for obj in objects.values()):
        nothing = [{"name": name, "x": 0.0, "y": 0.0, "score": 0.0} for name in names]
        return {frame: objects[frame]["keypoints"] if frame in objects else nothing for frame in range(first, last + 1)}
    followed = {frame: [] for frame in range(first, last + 1)}
    for index, name in enumerate(names):
        found = {
            frame: obj["keypoints"][index] for frame, obj in objects.items() if obj["keypoints"][index]["score"] > 0
        }
        times = sorted(found)
        values = np.array([[found[time][key] for key in ("x", "y", "score")] for time in times], float).reshape(-1, 3)
        whole = interpolate(times, values) if times else values
        if smooth and times:
            whole[:, :2] = interpolate(times, values[:, :2], smooth)
        for frame, points in followed.items():
            there = bool(times) and times[0] <= frame <= times[-1] and (fill or frame in found)
            x, y, score = whole[frame - times[0]].tolist() if there else (0.0, 0.0, 0.0)
            points.append({"name": name, "x": x, "y": y, "score": score})
    return followed
