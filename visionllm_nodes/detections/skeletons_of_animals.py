"""Skeletons of animals, with UniKPT's names; bones are the published ones, those of the face this pack's."""

from __future__ import annotations

from .skeleton_parts import Skeleton, chains

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
_LEG = ("base", "first segment", "second segment", "tip")
_RIGHT_LEGS, _LEFT_LEGS = (
    tuple(f"{leg} {side} {part}" for leg in ("foreleg", "midleg", "hindleg") for part in _LEG)
    for side in ("right", "left")
)

AP_10K = Skeleton(
    "animal", ANIMAL_17, chains([0, 1, 2, 0], [2, 3, 4], [3, 5, 6, 7], [3, 8, 9, 10], [4, 11, 12, 13], [4, 14, 15, 16])
)
ANIMALS = {
    "animal, 23 (Animal Kingdom)": Skeleton(
        "animal",
        (
            "head mid top",
            "eye left",
            "eye right",
            "mouth front top",
            "mouth back left",
            "mouth back right",
            "mouth front bottom",
            "shoulder left",
            "shoulder right",
            "elbow left",
            "elbow right",
            "wrist left",
            "wrist right",
            "torso mid back",
            "hip left",
            "hip right",
            "knee left",
            "knee right",
            "ankle left",
            "ankle right",
            "tail top back",
            "tail mid back",
            "tail end back",
        ),
        chains(
            [1, 0, 2],
            [3, 4, 6, 5, 3],
            [0, 7, 9, 11],
            [0, 8, 10, 12],
            [0, 13, 20, 21, 22],
            [20, 14, 16, 18],
            [20, 15, 17, 19],
        ),
    ),
    "animal face, 9 (AnimalWeb)": Skeleton(
        "animal face",
        (
            "right eye right",
            "right eye left",
            "left eye right",
            "left eye left",
            "nose tip",
            "lip right",
            "lip left",
            "upper lip",
            "lower lip",
        ),
        chains([0, 1, 4, 2, 3], [4, 7], [5, 7, 6, 8, 5]),
    ),
    "fly, 32 (Vinegar Fly)": Skeleton(
        "fly",
        (
            "head",
            "eye left",
            "eye right",
            "neck",
            "thorax",
            "abdomen",
            *_RIGHT_LEGS,
            *_LEFT_LEGS,
            "wing left",
            "wing right",
        ),
        chains([1, 0, 2], [0, 3, 4, 5], *(range(first, first + 4) for first in range(6, 30, 4)), [30, 3, 31]),
    ),
    "locust, 35 (Desert Locust)": Skeleton(
        "locust",
        (
            "head",
            "neck",
            "thorax",
            "abdomen1",
            "abdomen2",
            "anttip left",
            "antbase left",
            "eye left",
            *_LEFT_LEGS,
            "anttip right",
            "antbase right",
            "eye right",
            *_RIGHT_LEGS,
        ),
        chains(
            range(5),
            *(range(first, first + 3) for first in (5, 20)),
            *(range(first, first + 4) for first in (8, 12, 16, 23, 27, 31)),
        ),
    ),
}
