"""Tracks: which boxes in the frames of a video are the same object.

Objects seen in the frame before are matched first, then those that are hidden for longer and longer, each by the
overlap with where its motion takes it (Bewley et al. 2016, arXiv 1602.00763; the order: Wojke et al. 2017, arXiv
1703.07402; enlarged boxes for what moves fast: Yang et al. 2023, arXiv 2211.14317). Where looks are known, they decide
between places, and join what left with what comes back.
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
LESS_SIMILAR = 0.1  # than another hidden object: then the place of a box says nothing


@dataclass
class Track:
    """One object: the frames it is seen in, its place among the boxes of each, and the boxes [x1, y1, x2, y2]."""

    label: str
    frames: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    look: np.ndarray | float = 0.0  # the sum of the vectors of its sightings

    def add(self, frame: int, place: int, box: np.ndarray, vector: np.ndarray | float = 0.0) -> None:
        self.frames.append(frame)
        self.places.append(place)
        self.boxes.append(box)
        self.look = self.look + vector

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
    frames: Sequence[Sequence[dict]],
    min_overlap: float = 0.2,
    max_gap: int = 15,
    min_length: int = 1,
    looks: Sequence[np.ndarray] | None = None,
    min_similarity: float = 0.85,
) -> list[Track]:
    """Join BOUNDING_BOXes of the frames of a video to tracks, in the order in which the objects appear.

    Only boxes of one label are joined. min_overlap: IoU with the place where an object should be. max_gap: so many
    frames an object may be hidden. Tracks with fewer than `min_length` sightings are left out. looks: per frame a
    vector for each box [n, E], as long (0..1) as it is to count. min_similarity: cosine of two tracks that are one
    object, however long it was away.
    """
    tracks: list[Track] = []
    for frame, boxes in enumerate(interruptible(frames)):
        corners = [np.array(box_corners(box), float) for box in boxes]
        labels = [box.get("label") or "" for box in boxes]
        vectors = np.zeros((len(boxes), 1)) if looks is None else looks[frame]
        free = set(range(len(boxes)))
        hidden = [] if looks is None else [track for track in tracks if track.frames[-1] < frame - 1]
        least = _most_similar(hidden, labels, vectors) - LESS_SIMILAR
        for enlarged in (False, True):
            for gap in range(1, max_gap + 2):
                waiting = [track for track in tracks if track.frames[-1] == frame - gap]
                share = min(MOST_ENLARGED, ENLARGED + ENLARGED_PER_FRAME * (gap - 1)) if enlarged else 0.0
                found = _match(waiting, frame, sorted(free), corners, labels, vectors, least, share, min_overlap)
                for track, place in found:
                    track.add(frame, place, corners[place], vectors[place])
                    free.discard(place)
        for place in sorted(free):
            tracks.append(Track(labels[place]))
            tracks[-1].add(frame, place, corners[place], vectors[place])
    if looks is not None:
        tracks = _join_alike(tracks, min_similarity)
    return [track for track in tracks if len(track.frames) >= min_length]


def _match(
    tracks: Sequence[Track],
    frame: int,
    places: Sequence[int],
    corners: Sequence[np.ndarray],
    labels: Sequence[str],
    vectors: np.ndarray,
    least: np.ndarray,
    enlarged: float,
    min_overlap: float,
) -> Iterable[tuple[Track, int]]:
    """Return pairs of tracks and boxes, each once, with the largest overlaps and the most similar looks in all."""
    if not tracks or not places:
        return []
    expected = _enlarge(np.stack([track.predict(frame) for track in tracks]), enlarged)
    overlaps = _overlaps(expected, _enlarge(np.stack([corners[place] for place in places]), enlarged))
    same = np.array([[track.label == labels[place] for place in places] for track in tracks])
    similar = _similarities(np.stack([track.look for track in tracks]), vectors[places])
    possible = same & (overlaps > 0) & (overlaps >= min_overlap)
    if tracks[0].frames[-1] < frame - 1:
        possible &= similar >= least[places]
    scores = overlaps + similar.clip(0)
    rows, columns = linear_sum_assignment(np.where(possible, scores, 0), maximize=True)
    return [(tracks[row], places[column]) for row, column in zip(rows, columns, strict=True) if possible[row, column]]


def _most_similar(tracks: Sequence[Track], labels: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """Return for each box its largest similarity to a track of its label, [n]; -1 without one."""
    if not tracks or not labels:
        return np.full(len(labels), -1.0)
    same = np.array([[track.label == label for label in labels] for track in tracks])
    return np.where(same, _similarities(np.stack([track.look for track in tracks]), vectors), -1.0).max(0)


def _join_alike(tracks: Sequence[Track], min_similarity: float) -> list[Track]:
    """Return the tracks with those joined that are never there at once and look alike, the most similar first."""
    looks = np.stack([track.look for track in tracks]) if tracks else np.zeros((0, 1))
    similar = np.triu(_similarities(looks, looks), 1)
    labels = np.array([track.label for track in tracks])
    similar[labels[:, None] != labels[None]] = 0
    rows, columns = np.nonzero(similar >= max(min_similarity, 1e-6))
    parts = [[track] for track in tracks]  # of the object that a track belongs to, one list for all its tracks
    for pair in interruptible(np.argsort(-similar[rows, columns], kind="stable").tolist()):
        first, second = parts[rows[pair]], parts[columns[pair]]
        if first is not second and not any(_at_once(a, b) for a in first for b in second):
            first += second
            parts = [first if of_track is second else of_track for of_track in parts]
    joined = {id(of_track): sorted(of_track, key=lambda track: track.frames[0]) for of_track in parts}
    return [_joined(of_object) for of_object in joined.values()]


def _at_once(first: Track, second: Track) -> bool:
    return first.frames[0] <= second.frames[-1] and second.frames[0] <= first.frames[-1]


def _joined(parts: Sequence[Track]) -> Track:
    whole = Track(parts[0].label)
    for part in parts:
        for frame, place, box in zip(part.frames, part.places, part.boxes, strict=True):
            whole.add(frame, place, box)
        whole.look = whole.look + part.look
    return whole


def _similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cosines of vectors [A, E] and [B, E], [A, B]; 0 where one has no length."""
    first, second = (of / np.linalg.norm(of, axis=1, keepdims=True).clip(1e-9) for of in (first, second))
    return first @ second.T


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
