"""Skeletons of a car, clothes and furniture, with UniKPT's names.

The bones of the car are the published ones without its two points named "none"; the others are this pack's: outlines of
clothes, edges of furniture.
"""

from __future__ import annotations

from collections.abc import Iterable

from .skeleton_parts import Bones, Skeleton, chains, closed, mirrored, numbered

_NECKLINE = (
    "upper center neckline",
    "upper right neckline",
    "lower right neckline",
    "lower center neckline",
    "lower left neckline",
    "upper left neckline",
)
_OPEN_NECKLINE = (
    "upper center neckline",
    "lower right center neckline",
    "lower right neckline",
    "upper right neckline",
    "lower left neckline",
    "upper left neckline",
)
_RIGHT_CUFF, _LEFT_CUFF = ("right cuff outside", "right cuff inside"), ("left cuff inside", "left cuff outside")


def _sides(count: int) -> list[str]:
    """Return the points down the right side, along the hem and up the left one."""
    return [*numbered("right side", count), "center hem", *mirrored("left side", count)]


def _sleeves(count: int, body: Iterable[str]) -> list[str]:
    """Return the points of the outline from the right shoulder around to the left one."""
    return [
        *numbered("right sleeve outside", count),
        *_RIGHT_CUFF,
        *mirrored("right sleeve inside", count),
        *body,
        *numbered("left sleeve inside", count),
        *_LEFT_CUFF,
        *mirrored("left sleeve outside", count),
    ]


def _top(name: str, outline: Iterable[str]) -> Skeleton:
    """Make a piece of clothing with a neckline; the outline begins and ends at its upper corners."""
    points = (*_NECKLINE, *outline)
    return Skeleton(name, points, chains(closed(0, 5), [1, *range(6, len(points)), 5]))


def _bottom(name: str, first: str, outline: Iterable[str]) -> Skeleton:
    points = (f"right {first}", "upper center", f"left {first}", *outline)
    return Skeleton(name, points, chains([1, 0, *range(3, len(points)), 2, 1]))


def _outwear(name: str, right: Iterable[str], left: Iterable[str]) -> Skeleton:
    """Make a piece that is open in front; `right` and `left`: the sleeve's points down to the armpit, and back."""
    points = (
        *_OPEN_NECKLINE,
        *right,
        *numbered("right side outside", 3),
        "right side inside 3",
        *mirrored("left side outside", 3),
        *left,
        "lower left center neckline",
        *numbered("left side inside", 3),
        *numbered("right side inside", 2),
    )
    place = {point: index for index, point in enumerate(points)}
    right_hem, left_hem, opening = place["right side inside 3"], place["left side inside 3"], len(points) - 6
    return Skeleton(
        name,
        points,
        chains(
            [1, 2, 3, 0, 5, 4, opening],
            [3, *range(6, right_hem + 1), len(points) - 1, len(points) - 2, 1],
            [opening, *range(opening + 1, left_hem + 1), *range(right_hem + 1, opening), 5],
        ),
    )


def _mirrored_furniture(name: str, half: Iterable[str], edges: Bones, across: Iterable[int]) -> Skeleton:
    """Make furniture of a right half, whose corners are named, and the same at the left."""
    right = tuple(half)
    count = len(right)
    points = (*(point.format("right") for point in right), *(point.format("left") for point in right))
    bones = (*edges, *((a + count, b + count) for a, b in edges), *((index, index + count) for index in across))
    return Skeleton(name, points, bones)


_SEAT = ("base righttop", "base lefttop", "base leftbottom", "base rightbottom")

_CLOTHES = (
    _top("short sleeved shirt", _sleeves(2, _sides(3))),
    _top("long sleeved shirt", _sleeves(4, _sides(3))),
    _outwear(
        "short sleeved outwear",
        [*numbered("right sleeve outside", 2), *_RIGHT_CUFF, *mirrored("right sleeve inside", 2)],
        [*numbered("left sleeve inside", 2), *_LEFT_CUFF, *mirrored("left sleeve outside", 2)],
    ),
    _outwear(
        "long sleeved outwear",
        [*numbered("right sleeve outside", 4), *_RIGHT_CUFF, *numbered("right sleeve inside", 4)],
        [*mirrored("left sleeve inside", 4), *_LEFT_CUFF, *mirrored("left sleeve outside", 4)],
    ),
    _top("vest", ["right sleeve", *_sides(3), "left sleeve"]),
    _top("sling", ["right sleeve", *_sides(3), "left sleeve"]),
    _bottom(
        "shorts", "side outside 1", ["right side outside 2", *_RIGHT_CUFF, "crotch", *_LEFT_CUFF, "left side outside 2"]
    ),
    _bottom(
        "trousers",
        "side outside 1",
        [
            *numbered("right side outside", 2, 2),
            *_RIGHT_CUFF,
            "right side inside 1",
            "crotch",
            "left side inside 1",
            *_LEFT_CUFF,
            *mirrored("left side outside", 2, 2),
        ],
    ),
    _bottom("skirt", "side 1", [*numbered("right side", 2, 2), "center hem", *mirrored("left side", 2, 2)]),
    _top(
        "short sleeved dress",
        [
            *numbered("right sleeve outside", 2),
            *_RIGHT_CUFF,
            *numbered("right sleeve inside", 2),
            *numbered("left side", 5),  # the published names have the sides changed round
            "center hem",
            *mirrored("right side", 5),
            *mirrored("left sleeve inside", 2),
            *_LEFT_CUFF,
            *mirrored("left sleeve outside", 2),
        ],
    ),
    _top("long sleeved dress", _sleeves(4, _sides(5))),
    _top("vest dress", _sides(6)),
    _top("sling dress", _sides(6)),
)
_FURNITURE = (
    _mirrored_furniture(
        "bed",
        ["legs {}bottomcorner", "legs {}topcorner", "base {}bottom", "base {}top", "backrest {}top"],
        chains([0, 2, 3, 4], [1, 3]),
        (2, 3, 4),
    ),
    Skeleton(
        "chair",
        (
            *(f"legs {corner}corner" for corner in ("righttop", "lefttop", "leftbottom", "rightbottom")),
            *_SEAT,
            "headboard righttop",
            "headboard lefttop",
        ),
        chains([0, 4], [1, 5], [2, 6], [3, 7], closed(4, 7), [4, 8, 9, 5]),
    ),
    _mirrored_furniture(
        "sofa",
        [
            "legs {}bottomcorner",
            "legs {}topcorner",
            "base {}bottom",
            "base {}top",
            "armrests {}bottomcorner",
            "armrests {}topcorner",
            "backrest {}top",
        ],
        chains([0, 2, 3, 5, 4, 2], [1, 3], [5, 6]),
        (2, 3, 6),
    ),
    Skeleton(
        "swivelchair",
        (
            *numbered("rotatingbase", 5),
            "rotatingbase center",
            "base center",
            *_SEAT,
            "backrest righttop",
            "backrest lefttop",
        ),
        chains(*([5, leg] for leg in range(5)), [5, 6], closed(7, 10), [7, 11, 12, 8]),
    ),
    Skeleton(
        "table",
        (*numbered("desktop corner", 4), *numbered("table leg", 4)),
        chains(closed(0, 3), *([corner, corner + 4] for corner in range(4))),
    ),
)
_CAR = Skeleton(
    "car",
    (
        *(f"{side} {end} wheel center" for end in ("front", "rear") for side in ("right", "left")),
        *(f"{end} {side}" for end in ("front", "back") for side in ("right", "left")),
        *(f"roof {end} {side}" for end in ("front", "back") for side in ("right", "left")),
    ),
    chains([0, 2, 3, 1, 0], [8, 9, 11, 10, 8], [0, 4, 5, 1], [4, 8], [5, 9], [2, 6, 7, 3], [6, 10], [7, 11]),
)

THINGS = {
    f"{skeleton.object}, {len(skeleton.keypoints)} ({source})": skeleton
    for source, skeletons in (("CarFusion", (_CAR,)), ("DeepFashion2", _CLOTHES), ("Keypoint-5", _FURNITURE))
    for skeleton in skeletons
}
