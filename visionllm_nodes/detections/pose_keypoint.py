"""POSE_KEYPOINT, OpenPose's form: a dict for each image, "people" of flat lists x, y, confidence in pixels.

Readers differ. ComfyUI's own drawer needs complete lists of body, face and both hands; comfyui_controlnet_aux draws a
point only where the confidence is 1. So every list is complete and confidences are 1 or 0; the true scores stand beside
them under "scores". AP-10K animals go under "animals", as comfyui_controlnet_aux reads them, and their labels and
scores under "animal_details". In: both packs' dicts, lists that are missing or None, arrays, scores of any size, and
coordinates in 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...mulan.boundary.interrupts import interruptible
from .bounding_boxes import bounding_box, check_label
from .checks import entries, fields, image_size, number, position
from .keypoints import point_bounds
from .names import normalize_name
from .skeletons import BODY_18, BODY_BONES, FACE_68, FACE_BONES, FEET_6, HAND_21, HAND_BONES
from .skeletons_of_animals import ANIMAL_17, AP_10K

BODY, FEET, FACE, LEFT, RIGHT = (
    "pose_keypoints_2d",
    "foot_keypoints_2d",
    "face_keypoints_2d",
    "hand_left_keypoints_2d",
    "hand_right_keypoints_2d",
)
ANIMALS, DETAILS, SCORES = "animals", "animal_details", "scores"
PARTS = {
    BODY: BODY_18,
    FEET: FEET_6,
    FACE: (*FACE_68, "right pupil", "left pupil"),
    LEFT: tuple(f"left hand {name}" for name in HAND_21),
    RIGHT: tuple(f"right hand {name}" for name in HAND_21),
}
BONES = {BODY: BODY_BONES, FACE: FACE_BONES, LEFT: HAND_BONES, RIGHT: HAND_BONES, ANIMALS: AP_10K.bones}
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
                points = [found.get(normalize_name(name)) for name in ANIMAL_17]
                pose.setdefault(ANIMALS, []).append(_flat(points))
                pose.setdefault(DETAILS, []).append(_details(obj, {ANIMALS: points}))
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


def check_pose(value) -> list[dict]:
    """Return any POSE_KEYPOINT as checked copies: a dict for each image, in which all lists are there and complete.

    Raises ValueError with the image, the person and the list that is wrong.
    """
    frames = value if isinstance(value, (list, tuple)) else [value]
    return [
        _checked_frame(frame, f"image {index} of the POSE_KEYPOINT")
        for index, frame in enumerate(interruptible(frames), 1)
    ]


def from_pose_keypoint(value) -> list[dict]:
    """Convert POSE_KEYPOINT -> KEYPOINTS, only what was found. Raises ValueError as `check_pose` does."""
    return [_frame(frame) for frame in interruptible(check_pose(value))]


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
    if sum(point is not None for points in parts.values() for point in points) <= (body[1] is not None):
        return None  # nothing, or only the neck: insects have one, too
    person: dict = {part: _flat(points) for part, points in parts.items() if part != OPTIONAL or any(points)}
    return person | _details(obj, {part: points for part, points in parts.items() if any(points)})


def _details(obj: dict, parts: dict[str, list[dict | None]]) -> dict:
    """Return the label and the true scores of an object and of its points."""
    scores = {part: [point["score"] if point else 0.0 for point in points] for part, points in parts.items()}
    return {"label": obj["label"], SCORES: {"object": obj["score"]} | scores}


def _flat(points: Iterable[dict | None]) -> list[float]:
    return [
        number
        for point in points
        for number in ((float(point["x"]), float(point["y"]), 1.0) if point else (0.0, 0.0, 0.0))
    ]


def _frame(frame: dict) -> dict:
    width, height = frame["canvas_width"], frame["canvas_height"]
    read = [_read(person, PARTS, person) for person in frame["people"]]
    read += [
        _read({ANIMALS: animal}, (ANIMALS,), details)
        for animal, details in zip(frame[ANIMALS], frame[DETAILS], strict=True)
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


def _read(lists: dict, parts: Iterable[str], details: dict) -> dict:
    """Return the parts as triples, with the true scores where those are known, and label and score of the object."""
    scores = details.get(SCORES, {})
    read: dict = {"label": details.get("label"), "score": scores.get("object")}
    for part in parts:
        flat = lists[part]
        true = scores.get(part) or flat[2::3]
        read[part] = [
            (x, y, score if confidence > 0 else 0.0)
            for x, y, confidence, score in zip(flat[::3], flat[1::3], flat[2::3], true, strict=True)
        ]
    return read


def _checked_frame(frame, where: str) -> dict:
    if not isinstance(frame, dict) or not {"canvas_width", "canvas_height"} <= frame.keys():
        raise ValueError(f'{where} must be a dict with "canvas_width", "canvas_height" and "people"')
    sides = ("canvas_width", "canvas_height")
    width, height = image_size(frame["canvas_width"], frame["canvas_height"], where, sides)
    checked: dict = {"canvas_width": width, "canvas_height": height}
    people, animals = (
        [] if frame.get(name) is None else entries(frame[name], f'"{name}" of {where}') for name in ("people", ANIMALS)
    )
    checked["people"] = [_checked_person(one, f"person {index} of {where}") for index, one in enumerate(people, 1)]
    checked[ANIMALS] = [_flat_list(one, 17, f"animal {index} of {where}") for index, one in enumerate(animals, 1)]
    details = frame.get(DETAILS)
    if not isinstance(details, (list, tuple)) or len(details) != len(animals):
        details = [{}] * len(animals)
    checked[DETAILS] = [
        _checked_details(one, {ANIMALS: 17}, f"animal {index} of {where}") for index, one in enumerate(details, 1)
    ]
    return checked


def _checked_person(person, where: str) -> dict:
    fields(person, where, "a dict of keypoint lists")
    counts = {part: len(names) for part, names in PARTS.items()}
    lists = {part: _flat_list(person.get(part), count, f'"{part}" of {where}') for part, count in counts.items()}
    return lists | _checked_details(person, counts, where)


def _checked_details(given, counts: dict[str, int], where: str) -> dict:
    """Return label and scores, where they are ours: other packs may mean something else by these names."""
    given = given if isinstance(given, dict) else {}
    label, scores = given.get("label"), given.get(SCORES)
    checked: dict = {} if label is None else {"label": check_label(label, f'"label" of {where}')}
    if isinstance(scores, dict):
        checked[SCORES] = {
            part: [number(score, f"a score of {where}") for score in entries(scores[part], f"the scores of {where}")]
            for part in counts
            if scores.get(part) is not None
        }
        checked[SCORES] = {part: true for part, true in checked[SCORES].items() if len(true) == counts[part]}
        if scores.get("object") is not None:
            checked[SCORES]["object"] = number(scores["object"], f"the score of {where}")
    return checked


def _flat_list(value, count: int, where: str) -> list[float]:
    """Return x, y, confidence of `count` points from flat or nested numbers, filled up with points not found."""
    flat: list = []
    for entry in [] if value is None else entries(value, where):
        flat += entry if isinstance(entry, (list, tuple)) else (entry,)
    if len(flat) % 3 or len(flat) > 3 * count:
        raise ValueError(
            f"{where} must hold x, y and confidence of at most {count} keypoints; it holds {len(flat)} numbers"
        )
    made = [number(value, f"a number in {where}") for value in flat] + [0.0] * (3 * count - len(flat))
    for x, y, confidence in zip(made[::3], made[1::3], made[2::3], strict=True):
        if confidence > 0:
            position(x, f"x in {where}")
            position(y, f"y in {where}")
    return made
