"""Tracks of boxes, masks and keypoints: measured on drawn videos with crossings, occlusions and missed detections."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from mulan_nodes.visionllm_nodes.detections.looks import embed_boxes
from mulan_nodes.visionllm_nodes.detections.tracked_objects import (
    follow_boxes,
    follow_keypoints,
    follow_masks,
    interpolate,
    name_tracks,
)
from mulan_nodes.visionllm_nodes.detections.tracking import track_boxes

WIDTH, HEIGHT, FRAMES = 640, 480, 90


def box(x: float, y: float, width: float = 20, height: float = 20, label: str = "cat", **more) -> dict:
    return {"x": x, "y": y, "width": width, "height": height, "label": label} | more


def video(seed: int, objects: int, missed: float, turning: float) -> tuple[list[list[dict]], list[list[int]]]:
    """Boxes and whose they are: objects of one label that bounce off the edges, hidden where a nearer one covers 60 %,
    measured with two pixels of noise, missed at random, in any order.
    """
    chance = np.random.default_rng(seed)
    sizes, positions = chance.uniform(40, 110, (objects, 2)), chance.uniform(0, 1, (objects, 2)) * (WIDTH, HEIGHT)
    angles, speeds = chance.uniform(0, 2 * np.pi, objects), chance.uniform(1.5, 6, objects)
    turns = chance.uniform(-turning, turning, objects)
    frames, owners = [], []
    for _ in range(FRAMES):
        angles += turns
        positions += np.stack((np.cos(angles), np.sin(angles)), axis=1) * speeds[:, None]
        outside = (positions < 0) | (positions > (WIDTH, HEIGHT))
        angles = np.where(outside[:, 0], np.pi - angles, angles)
        angles = np.where(outside[:, 1], -angles, angles)
        positions = positions.clip(0, (WIDTH, HEIGHT))
        corners = np.concatenate((positions - sizes / 2, positions + sizes / 2), axis=1)
        seen = [index for index in range(objects) if not hidden(corners, index) and chance.random() >= missed]
        seen = chance.permutation(seen).astype(int).tolist()
        noisy = corners + chance.normal(0, 2, corners.shape)
        frames.append([box(*noisy[i, :2], *(noisy[i, 2:] - noisy[i, :2])) for i in seen])
        owners.append(seen)
    return frames, owners


def hidden(corners: np.ndarray, index: int) -> bool:
    starts = np.maximum(corners[index, :2], corners[index + 1 :, :2])
    ends = np.minimum(corners[index, 2:], corners[index + 1 :, 2:])
    area = (corners[index, 2:] - corners[index, :2]).prod()
    return bool(((ends - starts).clip(0).prod(1) > 0.6 * area).any())


def measure(frames: list[list[dict]], owners: list[list[int]]) -> tuple[float, int]:
    """IDF1 (Ristani et al. 2016) and how often an object's track changes."""
    tracks = track_boxes(frames)
    track_of = {
        sighting: number
        for number, track in enumerate(tracks)
        for sighting in zip(track.frames, track.places, strict=True)
    }
    shared = np.zeros((max(map(max, filter(None, owners))) + 1, len(tracks)))
    latest, switches = {}, 0
    for frame, of_frame in enumerate(owners):
        for place, owner in enumerate(of_frame):
            number = track_of[frame, place]
            shared[owner, number] += 1
            switches += latest.get(owner, number) != number
            latest[owner] = number
    rows, columns = linear_sum_assignment(shared, maximize=True)
    return shared[rows, columns].sum() / shared.sum(), switches


@pytest.mark.parametrize(
    ("objects", "missed", "turning", "least", "most"),
    [(3, 0.05, 0.0, 0.99, 0.5), (6, 0.05, 0.0, 0.98, 0.5), (6, 0.2, 0.03, 0.94, 3.0), (10, 0.05, 0.03, 0.96, 2.0)],
)
def test_objects_of_one_name_keep_their_track(objects, missed, turning, least, most):
    """Mean IDF1 and switches over twelve videos."""
    scores = np.array([measure(*video(seed, objects, missed, turning)) for seed in range(12)])
    assert scores[:, 0].mean() >= least and scores[:, 1].mean() <= most, scores.mean(0)


def names_of(frames, **limits) -> list[list[str | None]]:
    """The name of each box in its frame."""
    tracks = track_boxes(frames, **limits)
    found: list[list[str | None]] = [[None] * len(boxes) for boxes in frames]
    for track, name in zip(tracks, name_tracks(tracks), strict=True):
        for frame, place in zip(track.frames, track.places, strict=True):
            found[frame][place] = name
    return found


def test_two_that_cross_while_one_is_hidden():
    frames = []
    for time in range(20):
        left, right = box(10 + 8 * time, 50), box(170 - 8 * time, 55)
        frames.append([right] if 8 <= time <= 12 else [left, right] if time % 2 else [right, left])
    for time, names in enumerate(names_of(frames)):
        expected = ["cat 1"] if 8 <= time <= 12 else ["cat 2", "cat 1"] if time % 2 else ["cat 1", "cat 2"]
        assert names == expected, time


def test_names_and_limits():
    still = [[box(0, 0)], [box(0, 0, label="dog")], [], [], [box(0, 0)]]
    assert names_of(still) == [["cat 1"], ["dog 1"], [], [], ["cat 1"]]
    assert names_of(still, max_gap=2) == [["cat 1"], ["dog 1"], [], [], ["cat 2"]]
    assert names_of(still, min_length=2) == [["cat 1"], [None], [], [], ["cat 1"]]
    far = [[box(0, 0)], [box(45, 0)], [box(300, 0)]]
    assert names_of(far, min_overlap=0.0) == names_of(far, min_overlap=0.9) == [["cat 1"], ["cat 2"], ["cat 3"]]
    fast = [[box(time * 30, 0)] for time in range(5)]
    assert names_of(fast, min_overlap=0.1) == [["cat 1"]] * 5
    assert names_of([]) == [] and names_of([[], []]) == [[], []]
    assert names_of([[{"x": 0, "y": 0, "width": 5, "height": 5}]] * 2) == [["1"], ["1"]]


def looking(*owners: list[int]) -> list[np.ndarray]:
    """A vector for each box of each frame, by whose it is: nearly the same for one object, far from the others."""
    chance = np.random.default_rng(0)
    return [np.eye(4)[of_frame].reshape(-1, 4) + chance.normal(0, 0.05, (len(of_frame), 4)) for of_frame in owners]


def test_two_that_turn_round_while_hidden_are_told_apart_by_looks():
    """They come near, are hidden for six frames, and go back to where they came from: motion alone swaps them."""
    places = [*range(0, 49, 6), *[None] * 6, *range(40, -1, -6)]
    frames = [[] if x is None else [box(x, 50), box(130 - x, 55)] for x in places]
    owners = [[0, 1][: len(boxes)] for boxes in frames]
    swapped, right = (names_of(frames, looks=looks)[-1] for looks in (None, looking(*owners)))
    assert swapped == ["cat 2", "cat 1"] and right == ["cat 1", "cat 2"]


def test_what_left_gets_its_name_back_where_it_looks_the_same():
    there, away = [box(0, 0), box(60, 0, label="dog")], [[] for _ in range(30)]
    frames = [there, there, *away, [box(90, 40), box(20, 70)], [box(91, 40), box(20, 70)]]
    looks = looking([0, 1], [0, 1], *away, [2, 0], [2, 0])
    assert names_of(frames)[-1] == ["cat 2", "cat 3"]
    assert names_of(frames, looks=looks)[-1] == ["cat 2", "cat 1"]
    assert names_of(frames, looks=looks, min_similarity=1.1)[-1] == ["cat 2", "cat 3"]
    tracks = track_boxes(frames, looks=looks)
    seen = follow_boxes(frames, tracks, name_tracks(tracks), 15, 0.0)
    assert [len(objects) for objects in seen] == [2, 2, *[0] * 30, 2, 2]  # nothing is drawn where it was away
    twins = looking([0, 0], [0, 0], *away, [0, 0], [0, 0])
    both = [[box(0, 0), box(60, 0)]] * 2 + away + [[box(90, 40), box(20, 70)]] * 2
    assert sorted(filter(None, names_of(both, looks=twins)[-1])) == ["cat 1", "cat 2"]
    assert names_of([[], []], looks=[np.zeros((0, 4))] * 2) == [[], []]


def follow(frames, fill=15, smooth=0.0, **limits):
    tracks = track_boxes(frames, **limits)
    return follow_boxes(frames, tracks, name_tracks(tracks), fill, smooth)


def test_gaps_are_filled_on_a_line():
    frames = [[box(0, 0, score=0.5, colour="red")], [], [], [box(12, 6, 26, 20, score=0.8)]]
    seen = follow(frames)
    assert [len(objects) for objects in seen] == [1, 1, 1, 1]
    assert seen[0][0].box == frames[0][0] | {"label": "cat 1"} and seen[0][0].place == 0
    assert seen[1][0].place is None
    assert seen[1][0].box == pytest.approx(box(4, 2, 22, 20, label="cat 1", score=0.6), abs=1e-9)
    assert [len(objects) for objects in follow(frames, fill=1)] == [1, 0, 0, 1]
    assert [len(objects) for objects in follow(frames, fill=2)] == [1, 1, 1, 1]


def test_smoothing_takes_noise_away_and_leaves_motion():
    chance = np.random.default_rng(0)
    path = np.arange(60) * 3.0
    frames = [[box(x + noise, 10)] for x, noise in zip(path, chance.normal(0, 2, 60), strict=True)]
    noisy, smooth = (
        np.array([objects[0].box["x"] for objects in follow(frames, smooth=amount)]) - path for amount in (0.0, 3.0)
    )
    assert np.abs(smooth[6:-6]).mean() < 0.5 * np.abs(noisy[6:-6]).mean()
    assert interpolate([0, 2], np.array([[1.0], [3.0]])).tolist() == [[1.0], [2.0], [3.0]]


def test_masks_follow_their_boxes():
    frames = [[box(0, 0, 2, 2, "dog"), box(4, 0, 2, 2)], [], [box(4, 0, 2, 2), box(0, 0, 2, 2, "dog")]]
    masks = [torch.zeros(len(boxes), 4, 6) for boxes in frames]
    masks[0][0, 0, 0] = masks[0][1, 0, 5] = masks[2][0, 1, 5] = masks[2][1, 1, 1] = 1
    followed = follow_masks(follow(frames), masks)
    assert [mask.nonzero().tolist() for mask in followed[[0, 1, 4, 5]]] == [[[0, 0]], [[0, 5]], [[1, 1]], [[1, 5]]]
    assert followed[2, :2, :2].all() and followed[2].sum() == 4 and followed[3, :2, 4:].all()
    assert follow_masks([[], []], [torch.zeros(0, 4, 6)] * 2).shape == (1, 4, 6)


def test_keypoints_follow_their_objects():
    def record(*objects: dict) -> dict:
        return {"width": 100, "height": 80, "skeleton": [[0, 1]], "objects": list(objects)}

    def person(x: float, tail: float | None) -> dict:
        points = [{"name": "head", "x": x, "y": 5.0, "score": 1.0}]
        points.append({"name": "tail", "x": tail or 0.0, "y": 9.0 * bool(tail), "score": 0.5 * bool(tail)})
        return {
            "label": "person",
            "score": 0.9,
            "box": {"x": x, "y": 0, "width": 20, "height": 20},
            "keypoints": points,
        }

    records = [record(person(10, 11)), record(), record(person(14, None)), record(person(16, 17))]
    frames = [
        [obj["box"] | {"label": obj["label"], "score": obj["score"]} for obj in one["objects"]] for one in records
    ]
    followed = follow_keypoints(records, follow(frames), True, 0.0)
    assert [one["objects"][0]["label"] for one in followed] == ["person 1"] * 4
    heads, tails = zip(*(one["objects"][0]["keypoints"] for one in followed), strict=True)
    assert [head["x"] for head in heads] == [10, 12, 14, 16] and [tail["x"] for tail in tails] == [11, 13, 15, 17]
    assert followed[0]["skeleton"] == [[0, 1]] and followed[1]["objects"][0]["box"]["x"] == 12
    unfilled = follow_keypoints(records, follow(frames, fill=0), False, 0.0)
    assert [len(one["objects"]) for one in unfilled] == [1, 0, 1, 1]
    assert unfilled[2]["objects"][0]["keypoints"][1]["score"] == 0


class FakeInternVL:
    """Embeds an image as its mean color, of unit length."""

    model = SimpleNamespace(config=SimpleNamespace(embedding_size=3))

    def embed_images(self, images, framing):
        return F.normalize(torch.stack([image.mean((0, 1)) for image in images]), dim=1)


def test_vectors_are_of_what_lies_in_the_boxes_and_as_long_as_it_can_be_seen():
    image = torch.zeros(2, 40, 60, 4)
    image[:, :, :30, 0] = image[:, :, 30:, 1] = 1
    boxes = [box(0, 0), box(5, 0), box(40, 10), box(100, 0)]
    first, second = embed_boxes(cast(Any, FakeInternVL()), image, [boxes, []])
    assert second.shape == (0, 3)
    assert first == pytest.approx(np.array([[0.25, 0, 0], [0.25, 0, 0], [0, 1, 0], [0, 0, 0]]))
