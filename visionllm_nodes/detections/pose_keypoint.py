"""POSE_KEYPOINT, OpenPose's form: a dict for each image, "people" of flat lists x, y, confidence in pixels.

Readers differ. ComfyUI's own drawer needs complete lists of body, face and both hands; comfyui_controlnet_aux draws a
point only where the confidence is 1. So every list is complete and confidences are 1 or 0; the true scores stand beside
them under "scores". AP-10K animals go under "animals", as comfyui_controlnet_aux reads them. In: both packs' dicts,
lists that are missing or None, scores of any size, and coordinates in 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .bounding_boxes import bounding_box
from .keypoints import point_bounds
from .names import normalize_name
from .skeletons import ANIMAL_17, BODY_18, BODY_BONES, FACE_68, FACE_BONES, FEET_6, HAND_21, HAND_BONES, PRESETS

BODY, FEET, FACE, LEFT, RIGHT = (
    "pose_keypoints_2d",
    "foot_keypoints_2d",
    "face_keypoints_2d",
    "hand_left_keypoints_2d",
    "hand_right_keypoints_2d",
)
ANIMALS, SCORES = "animals", "scores"
PARTS = {
    BODY: BODY_18,
    FEET: FEET_6,
    FACE: (*FACE_68, "right pupil", "left pupil"),
    LEFT: tuple(f"left hand {name}" for name in HAND_21),
    RIGHT: tuple(f"right hand {name}" for name in HAND_21),
}
BONES = {
    BODY: BODY_BONES,
    FACE: FACE_BONES,
    LEFT: HAND_BONES,
    RIGHT: HAND_BONES,
    ANIMALS: PRESETS["animal, 17 (AP-10K)"].bones,
}
OPTIONAL = FEET
_ONLY_ANIMALS = {normalize_name(name) for name in ANIMAL_17} - {normalize_name(name) for name in BODY_18}


def to_pose_keypoint(frames: Sequence[dict], threshold: float = 0.0) -> list[dict]:
    """Convert KEYPOINTS -> POSE_KEYPOINT, by the keypoints' names.

    Those with a score below `threshold` count as not found. The neck, where it has no name of its own, is midway
    between the shoulders. A hand is the left one where its names or its label say "left". Raises ValueError where there
    are objects and none has a keypoint of this form.
    """
    made, objects = [], 0
    for frame in frames:
        pose: dict = {"canvas_width": frame["width"], "canvas_height": frame["height"], "people": []}
        for obj in frame["objects"]:
            objects += 1
            found = {
                normalize_name(point["name"]): point
                for point in obj["keypoints"]
                if point["score"] > 0 and point["score"] >= threshold
            }
            if _ONLY_ANIMALS & found.keys():
                pose.setdefault(ANIMALS, []).append(_flat([found.get(normalize_name(name)) for name in ANIMAL_17]))
                pose["version"] = "ap10k"
            else:
                person = _person(obj, found)
                if person:
                    pose["people"].append(person)
        made.append(pose)
    if objects and not any(pose["people"] or pose.get(ANIMALS) for pose in made):
        names = ", ".join(
            point["name"] for frame in frames for obj in frame["objects"][:1] for point in obj["keypoints"]
        )
        raise ValueError(
            "none of the keypoints belongs to OpenPose's body, face or hands, or to an AP-10K animal; "
            f"their names are {names}"
        )
    return made


def from_pose_keypoint(value) -> list[dict]:
    """Convert POSE_KEYPOINT -> KEYPOINTS, only what was found.

    Raises ValueError with the image, the person and the list that is wrong.
    """
    frames = value if isinstance(value, (list, tuple)) else [value]
    return [_frame(frame, f"image {index} of the POSE_KEYPOINT") for index, frame in enumerate(frames, 1)]


def _person(obj: dict, found: dict[str, dict]) -> dict | None:
    parts = {part: [found.get(normalize_name(name)) for name in names] for part, names in PARTS.items()}
    body = parts[BODY]
    if body[1] is None and body[2] and body[5]:
        left, right = body[5], body[2]
        body[1] = {
            "x": (left["x"] + right["x"]) / 2,
            "y": (left["y"] + right["y"]) / 2,
            "score": min(left["score"], right["score"]),
        }
    hand = [found.get(normalize_name(name)) for name in HAND_21]
    side = LEFT if "left" in obj["label"].lower() else RIGHT
    if any(hand) and not any(parts[side]):
        parts[side] = hand
    if not any(any(points) for points in parts.values()):
        return None
    person: dict = {part: _flat(points) for part, points in parts.items() if part != OPTIONAL or any(points)}
    scores = {
        part: [point["score"] if point else 0.0 for point in points] for part, points in parts.items() if any(points)
    }
    return person | {"label": obj["label"], SCORES: {"object": obj["score"]} | scores}


def _flat(points: Iterable[dict | None]) -> list[float]:
    return [
        number
        for point in points
        for number in ((float(point["x"]), float(point["y"]), 1.0) if point else (0.0, 0.0, 0.0))
    ]


def _frame(frame, where: str) -> dict:
    if not isinstance(frame, dict) or not {"canvas_width", "canvas_height"} <= frame.keys():
        raise ValueError(f'{where} must be a dict with "canvas_width", "canvas_height" and "people"')
    width, height = int(frame["canvas_width"]), int(frame["canvas_height"])
    read = [
        _read_person(person, f"person {index} of {where}") for index, person in enumerate(frame.get("people") or [], 1)
    ]
    read += [
        {ANIMALS: _triples(animal, 17, f"animal {index} of {where}")}
        for index, animal in enumerate(frame.get(ANIMALS) or [], 1)
    ]
    used = [
        part for part in (*PARTS, ANIMALS) if any(any(score > 0 for *_, score in one.get(part, ())) for one in read)
    ]
    names = {part: PARTS.get(part, ANIMAL_17) for part in used}
    positions = [(x, y) for one in read for part in used for x, y, score in one.get(part, ()) if score > 0]
    is_normalized = (
        bool(positions) and max(width, height) > 1 and all(0 <= x <= 1 and 0 <= y <= 1 for x, y in positions)
    )
    scale = (width, height) if is_normalized else (1, 1)
    skeleton, first = [], 0
    for part in used:
        skeleton += [[first + a, first + b] for a, b in BONES.get(part, ())]
        first += len(names[part])
    objects = []
    for one in read:
        points = []
        for part in used:
            triples = one.get(part) or [(0.0, 0.0, 0.0)] * len(names[part])
            points += [
                {
                    "name": name,
                    "x": x * scale[0] if score > 0 else 0.0,
                    "y": y * scale[1] if score > 0 else 0.0,
                    "score": max(0.0, score),
                }
                for name, (x, y, score) in zip(names[part], triples, strict=True)
            ]
        found = [point for point in points if point["score"] > 0]
        if found:
            score = one.get("score") or sum(point["score"] for point in found) / len(found)
            box = bounding_box(point_bounds(found), (height, width), "", score)
            objects.append(
                {
                    "label": one.get("label") or ("animal" if ANIMALS in one else "person"),
                    "score": score,
                    "box": {side: box[side] for side in ("x", "y", "width", "height")},
                    "keypoints": points,
                }
            )
    return {"width": width, "height": height, "objects": objects, "skeleton": skeleton}


def _read_person(person, where: str) -> dict:
    if not isinstance(person, dict):
        raise ValueError(f"{where} must be a dict of keypoint lists")
    scores = person.get(SCORES) or {}
    read: dict = {"label": person.get("label"), "score": scores.get("object")}
    for part, names in PARTS.items():
        triples = _triples(person.get(part), len(names), f'"{part}" of {where}')
        true = scores.get(part)
        if true and len(true) == len(triples):
            triples = [
                (x, y, float(score) if confidence > 0 else 0.0)
                for (x, y, confidence), score in zip(triples, true, strict=True)
            ]
        read[part] = triples
    return read


def _triples(numbers, count: int, where: str) -> list[tuple[float, float, float]]:
    """Return `count` triples of flat or nested numbers, filled up with points that were not found."""
    flat = [number for entry in numbers or () for number in (entry if isinstance(entry, (list, tuple)) else (entry,))]
    if len(flat) % 3 or len(flat) > 3 * count:
        raise ValueError(
            f"{where} must hold x, y and confidence of at most {count} keypoints; it holds {len(flat)} numbers"
        )
    flat = [float(number) for number in flat] + [0.0] * (3 * count - len(flat))
    return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
