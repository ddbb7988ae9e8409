"""Skeletons: keypoint names, in the words that the model was trained on, and the bones that join them.

Source: COCO (Human-Art and MacaquePose have the same), CrowdPose, AP-10K, 300W; the names are UniKPT's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .names import normalize_name
from .skeleton_parts import Skeleton, chains, closed, mirrored, numbered
from .skeletons_of_animals import ANIMALS, AP_10K
from .skeletons_of_things import THINGS

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
FACE_68 = (
    *numbered("right cheekbone", 2),
    *numbered("right cheek", 5),
    "right chin",
    "chin center",
    "left chin",
    *mirrored("left cheek", 5),
    *mirrored("left cheekbone", 2),
    *numbered("right eyebrow", 5),
    *numbered("left eyebrow", 5),
    *numbered("nasal bridge", 4),
    *numbered("right nasal wing", 2),
    "nasal wing center",
    *numbered("left nasal wing", 2),
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
    *numbered("upper lip outer edge", 5),
    "left mouth corner",
    *mirrored("lower lip outer edge", 5),
    *numbered("upper lip inter edge", 5),
    *mirrored("lower lip inter edge", 3),
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

HAND_BONES = chains(*([0, *range(first, first + 4)] for first in (1, 5, 9, 13, 17)))
FACE_BONES = chains(
    range(17),
    range(17, 22),
    range(22, 27),
    range(27, 31),
    range(31, 36),
    closed(36, 41),
    closed(42, 47),
    closed(48, 59),
    closed(60, 67),
)
BODY_BONES = chains([4, 3, 2, 1, 5, 6, 7], [1, 8, 9, 10], [1, 11, 12, 13], [1, 0], [0, 14, 16], [0, 15, 17])

PERSON = Skeleton(
    "person",
    COCO_17,
    chains([15, 13, 11, 12, 14, 16], [11, 5, 6, 12], [5, 7, 9], [6, 8, 10], [1, 2, 0, 1, 3, 5], [2, 4, 6]),
)
PRESETS = {
    "person, 17 (COCO)": PERSON,
    "person, 14 (CrowdPose)": Skeleton(
        "person", CROWDPOSE_14, chains([12, 13, 0, 2, 4], [13, 1, 3, 5], [0, 6, 8, 10], [1, 7, 9, 11], [6, 7])
    ),
    "animal, 17 (AP-10K)": AP_10K,
    "face, 68 (300W)": Skeleton("face", FACE_68, FACE_BONES),
    "hand, 21": Skeleton("hand", HAND_21, HAND_BONES),
    "macaque, 17 (MacaquePose)": replace(PERSON, object="macaque"),
    **ANIMALS,
    **THINGS,
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
