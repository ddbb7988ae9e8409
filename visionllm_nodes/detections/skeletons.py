"""Skeletons: keypoint names, in the words that the model was trained on, and the bones that join them.

Source: COCO, CrowdPose, AP-10K, 300W; the names are UniKPT's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .names import normalize_name

Bones = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Skeleton:
    """`object`: whose keypoints they are, as the model is asked. `bones`: pairs of indices into `keypoints`."""

    object: str
    keypoints: tuple[str, ...]
    bones: Bones


def _chains(*chains: Sequence[int]) -> Bones:
    return tuple(pair for chain in chains for pair in zip(chain, chain[1:], strict=False))


def _closed(first: int, last: int) -> list[int]:
    return [*range(first, last + 1), first]


def _numbered(name: str, count: int, first: int = 1) -> list[str]:
    return [f"{name} {index}" for index in range(first, first + count)]


def _mirrored(name: str, count: int) -> list[str]:
    return _numbered(name, count)[::-1]


COCO_17 = (
    "nose",
    "left eye",
    "right eye",
    "left ear",
    "right ear",
    "left shoulder",
    "right shoulder",
    "left elbow",
    "right elbow",
    "left wrist",
    "right wrist",
    "left hip",
    "right hip",
    "left knee",
    "right knee",
    "left ankle",
    "right ankle",
)
CROWDPOSE_14 = (*COCO_17[5:], "head", "neck")
BODY_18 = (
    "nose",
    "neck",
    "right shoulder",
    "right elbow",
    "right wrist",
    "left shoulder",
    "left elbow",
    "left wrist",
    "right hip",
    "right knee",
    "right ankle",
    "left hip",
    "left knee",
    "left ankle",
    "right eye",
    "left eye",
    "right ear",
    "left ear",
)  # OpenPose's
FEET_6 = ("left big toe", "left small toe", "left heel", "right big toe", "right small toe", "right heel")
ANIMAL_17 = (
    "left eye",
    "right eye",
    "nose",
    "neck",
    "root of tail",
    "left shoulder",
    "left elbow",
    "left front paw",
    "right shoulder",
    "right elbow",
    "right front paw",
    "left hip",
    "left knee",
    "left back paw",
    "right hip",
    "right knee",
    "right back paw",
)
FACE_68 = (
    *_numbered("right cheekbone", 2),
    *_numbered("right cheek", 5),
    "right chin",
    "chin center",
    "left chin",
    *_mirrored("left cheek", 5),
    *_mirrored("left cheekbone", 2),
    *_numbered("right eyebrow", 5),
    *_numbered("left eyebrow", 5),
    *_numbered("nasal bridge", 4),
    *_numbered("right nasal wing", 2),
    "nasal wing center",
    *_numbered("left nasal wing", 2),
    *(
        f"{side} eye {part}"
        for side in ("right", "left")
        for part in (
            "eye corner 1",
            "upper eyelid 1",
            "upper eyelid 2",
            "eye corner 2",
            "lower eyelid 2",
            "lower eyelid 1",
        )
    ),
    "right mouth corner",
    *_numbered("upper lip outer edge", 5),
    "left mouth corner",
    *_mirrored("lower lip outer edge", 5),
    *_numbered("upper lip inter edge", 5),
    *_mirrored("lower lip inter edge", 3),
)
HAND_21 = (
    "wrist",
    "thumb root",
    *(f"thumb's {joint} knuckle" for joint in ("third", "second", "first")),
    *(
        f"{finger}'s {joint}"
        for finger in ("forefinger", "middle finger", "ring finger", "pinky finger")
        for joint in ("root", "third knuckle", "second knuckle", "first knuckle")
    ),
)

HAND_BONES = _chains(*([0, *range(first, first + 4)] for first in (1, 5, 9, 13, 17)))
FACE_BONES = _chains(
    range(17),
    range(17, 22),
    range(22, 27),
    range(27, 31),
    range(31, 36),
    _closed(36, 41),
    _closed(42, 47),
    _closed(48, 59),
    _closed(60, 67),
)
BODY_BONES = _chains([4, 3, 2, 1, 5, 6, 7], [1, 8, 9, 10], [1, 11, 12, 13], [1, 0], [0, 14, 16], [0, 15, 17])

PRESETS = {
    "person, 17 (COCO)": Skeleton(
        "person",
        COCO_17,
        _chains([15, 13, 11, 12, 14, 16], [11, 5, 6, 12], [5, 7, 9], [6, 8, 10], [1, 2, 0, 1, 3, 5], [2, 4, 6]),
    ),
    "person, 14 (CrowdPose)": Skeleton(
        "person", CROWDPOSE_14, _chains([12, 13, 0, 2, 4], [13, 1, 3, 5], [0, 6, 8, 10], [1, 7, 9, 11], [6, 7])
    ),
    "animal, 17 (AP-10K)": Skeleton(
        "animal",
        ANIMAL_17,
        _chains([0, 1, 2, 0], [2, 3, 4], [3, 5, 6, 7], [3, 8, 9, 10], [4, 11, 12, 13], [4, 14, 15, 16]),
    ),
    "face, 68 (300W)": Skeleton("face", FACE_68, FACE_BONES),
    "hand, 21": Skeleton("hand", HAND_21, HAND_BONES),
}


def bones_of(names: Sequence[str]) -> list[tuple[int, int]]:
    """Return the bones of keypoint names in any order, as pairs of indices.

    They are those of the preset that has most of them, as far as both ends are there; else none.
    """
    index_of = {normalize_name(name): index for index, name in enumerate(names)}
    best: list[tuple[int, int]] = []
    for skeleton in PRESETS.values():
        known = [normalize_name(name) for name in skeleton.keypoints]
        bones = [
            (index_of[known[a]], index_of[known[b]])
            for a, b in skeleton.bones
            if known[a] in index_of and known[b] in index_of
        ]
        best = bones if len(bones) > len(best) else best
    return best
