"""Tracks: which boxes in the frames of a video are the same object.

Objects seen in the frame before are matched first, then those that are hidden for longer and longer, each by the
overlap with where its motion takes it (Bewley et al. 2016, arXiv 1602.00763; the order: Wojke et al. 2017, arXiv
1703.07402; enlarged boxes for what moves fast: Yang et al. 2023, arXiv 2211.14317).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from ...mulan.boundary.interrupts import interruptible
from .bounding_boxes import box_corners

MOTION_FRAMES = 8  # as many sightings say how fast an object moves
SIZE_FRAMES = 3  # and how large it is: a half hidden one seems smaller
ENLARGED = 0.5  # of a box's size, on each side, where the boxes themselves do not overlap
ENLARGED_PER_FRAME = 0.1  # while it is hidden
MOST_ENLARGED = 1.5


@dataclass
class Track:
    """One object: the frames it is seen in, its place among the boxes of each, and the boxes [x1, y1, x2, y2]."""

    label: str
    frames: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)

    def add(self, frame: int, place: int, box: np.ndarray) -> None:
        self.frames.append(frame)
        self.places.append(place)
        self.boxes.append(box)

    def predict(self, frame: int) -> np.ndarray:
        """Return where the object should be, if it goes on as in its last sightings."""
        boxes, times = np.stack(self.boxes[-MOTION_FRAMES:]), np.array(self.frames[-MOTION_FRAMES:], float)
        centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2])[-SIZE_FRAMES:].mean(0)
        middle = times.mean()
        spread = ((times - middle) ** 2).sum()
        speed = ((times - middle)[:, None] * centers).sum(0) / spread if spread else 0.0
        center = centers.mean(0) + speed * (frame - middle)
        return np.concatenate((center - sizes / 2, center + sizes / 2))


def track_boxes(
    frames: Sequence[Sequence[dict]], min_overlap: float = 0.2, max_gap: int = 15, min_length: int = 1
) -> list[Track]:
    """Join BOUNDING_BOXes of the frames of a video to tracks, in the order in which the objects appear.

    Only boxes of one label are joined. min_overlap: IoU with the place where an object should be. max_gap: so many
    frames an object may be hidden. Tracks with fewer than `min_length` sightings are left out.
    """
    tracks: list[Track] = []
    for frame, boxes in enumerate(interruptible(frames)):
        corners = [np.array(box_corners(box), float) for box in boxes]
        labels = [box.get("label") or "" for box in boxes]
        free = set(range(len(boxes)))
        for enlarged in (False, True):
            for gap in range(1, max_gap + 2):
                waiting = [track for track in tracks if track.frames[-1] == frame - gap]
                share = min(MOST_ENLARGED, ENLARGED + ENLARGED_PER_FRAME * (gap - 1)) if enlarged else 0.0
                for track, place in _match(waiting, frame, sorted(free), corners, labels, share, min_overlap):
                    track.add(frame, place, corners[place])
                    free.discard(place)
        for place in sorted(free):
            tracks.append(Track(labels[place]))
            tracks[-1].add(frame, place, corners[place])
    return [track for track in tracks if len(track.frames) >= min_length]


def _match(
    tracks: Sequence[Track],
    frame: int,
    places: Sequence[int],
    corners: Sequence[np.ndarray],
    labels: Sequence[str],
    enlarged: float,
    min_overlap: float,
) -> Iterable[tuple[Track, int]]:
    """Return pairs of tracks and boxes, each once, with the largest overlaps in all."""
    if not tracks or not places:
        return []
    expected = _enlarge(np.stack([track.predict(frame) for track in tracks]), enlarged)
    overlaps = _overlaps(expected, _enlarge(np.stack([corners[place] for place in places]), enlarged))
    same = np.array([[track.label == labels[place] for place in places] for track in tracks])
    overlaps[~same] = 0
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    return [
        (tracks[row], places[column])
        for row, column in zip(rows, columns, strict=True)
        if overlaps[row, column] > 0 and overlaps[row, column] >= min_overlap
    ]


def _enlarge(boxes: np.ndarray, share: float) -> np.ndarray:
    margin = (boxes[:, 2:] - boxes[:, :2]) * share
    return np.concatenate((boxes[:, :2] - margin, boxes[:, 2:] + margin), axis=1)


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes [A, 4] and [B, 4], [A, B]."""
    starts = np.maximum(first[:, None, :2], second[None, :, :2])
    ends = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = (ends - starts).clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
