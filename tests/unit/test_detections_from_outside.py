"""Records as other packs, files and clients could send them: each is used, or refused in our words.

The mutations are seeded: a failing one is named by its number.
"""

from __future__ import annotations

import copy
import json
import random
import re
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mulan_nodes.mulan.boundary.limits import MAX_MASK_PIXELS, MAX_POSITION
from mulan_nodes.mulan.boundary.texts import COMMAS, SEMICOLONS
from mulan_nodes.mulan.images.fonts import Fonts
from mulan_nodes.mulan.images.text_drawing import TextRenderer
from mulan_nodes.tools.fuzz import values
from mulan_nodes.visionllm_nodes.detections import bounding_boxes, json_document, keypoints, masks, pose_keypoint, segs
from mulan_nodes.visionllm_nodes.detections.drawing import BY_NAME, ColorMap, Style, draw
from mulan_nodes.visionllm_nodes.detections.names import split_names

NAN, INF = float("nan"), float("inf")
SIZE = 48, 64
POINTS = [
    {"name": name, "x": float(x), "y": 12.0, "score": 1.0} for name, x in (("nose", 10), ("left eye", 14), ("neck", 20))
]
BOX = {"x": 4.0, "y": 4.5, "width": 20.0, "height": 20.0}
BOXES = [[{**BOX, "label": "犬", "score": 0.9}, dict(BOX)]]
KEYPOINTS = [
    {
        "width": 64,
        "height": 48,
        "skeleton": [[0, 1], [0, 2]],
        "objects": [{"label": "person", "score": 0.9, "box": dict(BOX), "keypoints": POINTS}] * 2,
    }
]
POSE = [
    {
        "canvas_width": 64,
        "canvas_height": 48,
        "people": [
            {
                "pose_keypoints_2d": [5.0, 6.0, 1.0] * 18,
                "face_keypoints_2d": None,
                "hand_right_keypoints_2d": [[30.0, 30.0, 0.5]] * 21,
                "label": "runner",
                "scores": {"object": 0.5, "pose_keypoints_2d": [0.5] * 18},
            }
        ],
        "animals": [[7.0, 8.0, 1.0] * 17],
        "animal_details": [{"label": "dog", "scores": {"object": 0.9, "animals": [0.25] * 17}}],
    }
]
DOCUMENT = copy.deepcopy(values.DOCUMENT)
DOCUMENT["frames"][0]["height"] = 48  # not a square, and the keypoints of the records above
DOCUMENT["frames"][0]["objects"][0] |= {"mask": {"size": [48, 64], "counts": [260, 20, 2792]}, "keypoints": POINTS}
LEAVES = (
    *(None, "a", "", "64", "\ud83d", "\x00\x1c\u2028\u2029\x85", b"a", True, False, 0, 1, -1, 64, 64.0, 1.5, -0.0, NAN),
    *(INF, -INF, 1e30, -1e30, 1e308, 10**6, 10**20, 10**400, 5e-324, 2**31, -(2**31), 1 + 2j, [], {}, (), [None]),
    *([[]], (1, 2), (0, 1), [1, 2, 3, 4], [[0.5, 0.5, 1.0]] * 3, {"x": 1}, {"a": None}, set(), object(), print),
    *(np.float32(3), np.float64(NAN), np.int64(2), np.bool_(True), np.array([1, 2]), np.zeros((18, 3)), np.array(2.0)),
    *(
        torch.tensor(3.0),
        torch.tensor(NAN),
        torch.tensor(2),
        torch.tensor(True),
        torch.ones(18, 3),
        torch.tensor([5.0]),
    ),
    *(torch.ones(2, device="meta"), torch.ones(2).to_sparse(), torch.tensor(1j), torch.zeros(0), np.array(["a"])),
    *("x" * 1000, "a" + "\u0301" * 1000, "\u202eקטה", "a\nb\tc", "\ufeff", BOX, POINTS, POINTS[0], BOXES),
)
JSON_LEAVES = [leaf for leaf in LEAVES if isinstance(leaf, (type(None), str, int, float, list, dict))]
OURS = re.compile(
    r"must be|is not a finite number|is below zero|has no '|there are (bounding boxes|\d+ masks)|must hold x, y|"
    r"has [\w ]+ x [\w ]+ pixels, and an image has at most|would have \d+ pixels, and at most \d+ are made|"
    r"none of the keypoints belongs|this is not valid JSON: |has the format|is not a document of detections"
)
COUNT = 2000


def places(record, path=()) -> Iterator[tuple]:
    """Yield the path of each part of a record."""
    if path:
        yield path
    if isinstance(record, dict):
        for key, value in record.items():
            yield from places(value, (*path, key))
    elif isinstance(record, list):
        for index, value in enumerate(record[:4]):
            yield from places(value, (*path, index))


def mutated(record, leaves, rng: random.Random):
    """Return a copy of a record with one to three parts replaced, taken away, doubled or put into a list."""
    record = copy.deepcopy(record)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if rng.random() < 0.03:
            return copy.deepcopy(rng.choice(leaves))
        paths: list[tuple] = list(places(record))
        if not paths:
            return record
        path = rng.choice(paths)
        parent = record
        for step in path[:-1]:
            parent = parent[step]
        kind = rng.random()
        if kind < 0.7:
            parent[path[-1]] = copy.deepcopy(rng.choice(leaves))
        elif kind < 0.8:
            del parent[path[-1]]
        elif kind < 0.9:
            parent[path[-1]] = [parent[path[-1]]]
        elif isinstance(parent[path[-1]], list):
            parent[path[-1]] = parent[path[-1]] * 2
        else:
            parent[path[-1]] = tuple(parent[path[-1]]) if isinstance(parent[path[-1]], str) else (parent[path[-1]],)
    return record


def small(frames: list[dict]) -> bool:
    """Return whether masks of frames can be made here: others are within the limits, but slow."""
    return all(frame["width"] * frame["height"] <= 10_000 for frame in frames)


def use_boxes(value) -> None:
    lists = bounding_boxes.check_boxes(value)
    assert bounding_boxes.check_boxes(lists) == lists
    plain = [[{key: box[key] for key in (*BOX, "label", "score") if key in box} for box in boxes] for boxes in lists]
    text = json_document.write_document(
        "boxes", "", [json_document.frame_record(SIZE[1], SIZE[0], boxes) for boxes in plain]
    )
    assert json_document.read_document(text.encode()).bounding_boxes() == [[rounded(box) for box in b] for b in plain]
    union, each = masks.boxes_to_masks(plain, *SIZE)
    assert torch.equal(union.amax(0), each.amax(0))
    for boxes in plain:
        bounding_boxes.sort_boxes(boxes)
        segs.to_segs(torch.zeros(*SIZE, 3), boxes, None, 2.0)
        painted(boxes=boxes)


def rounded(box: dict) -> dict:
    sides = {side: round(box[side], 2) for side in BOX}
    return sides | ({"label": box["label"]} if box.get("label") else {}) | score_of(box)


def score_of(box: dict) -> dict:
    return {"score": round(box["score"], 4)} if "score" in box else {}


def use_keypoints(value) -> None:
    frames = keypoints.check_keypoints(value)
    assert keypoints.check_keypoints(frames) == frames
    written = json_document.write_document(
        "pose", "", [json_document.frame_record(one["width"], one["height"], keypoints=one) for one in frames]
    )
    read = json_document.read_document(written.encode())
    again = json_document.write_document(
        "pose", "", [json_document.frame_record(one["width"], one["height"], keypoints=one) for one in read.keypoints()]
    )
    assert again == written and len(read.keypoints()) == len(frames)
    keypoints.check_keypoint_names(frames, [])
    keypoints.keypoint_boxes(frames)
    pose = pose_keypoint.to_pose_keypoint(frames)
    assert pose_keypoint.from_pose_keypoint(json.loads(json.dumps(pose))) is not None
    if small(frames) and len({(frame["height"], frame["width"]) for frame in frames}) < 2:
        for shape in keypoints.SHAPES:
            keypoints.keypoint_masks(frames, shape, margin=2)
        for frame in frames:
            painted(pose=frame, size=(frame["height"], frame["width"]))


def use_pose(value) -> None:
    poses = pose_keypoint.check_pose(value)
    assert pose_keypoint.check_pose(poses) == poses
    frames = pose_keypoint.from_pose_keypoint(value)
    assert keypoints.check_keypoints(frames) == frames


def use_document(value) -> None:
    text = json.dumps(value)
    read = json_document.read_document(text)
    assert json_document.read_document(text.encode()) == read
    boxes = read.bounding_boxes()
    assert bounding_boxes.boxes_per_image(boxes, len(boxes) or None) == (boxes or [[]])
    assert keypoints.check_keypoints(read.keypoints()) == read.keypoints()
    "".join(read.texts).encode()
    if small(read.frames):
        own = read.masks()
        assert own is None or len(masks.split_masks_per_image(own, boxes)) == len(boxes)


def painted(boxes=(), pose=None, size=SIZE) -> None:
    names = [box.get("label", "") for box in boxes]
    style = Style(keypoint_names=True, line_width=3)
    image = draw(torch.zeros(*size, 3), boxes, None, pose, style, ColorMap(BY_NAME, names), TextRenderer(Fonts([])))
    assert image.shape == (*size, 3) and torch.isfinite(image).all()


@pytest.mark.parametrize(
    "record, use, leaves",
    [
        (BOXES, use_boxes, LEAVES),
        (KEYPOINTS, use_keypoints, LEAVES),
        (POSE, use_pose, LEAVES),
        (DOCUMENT, use_document, JSON_LEAVES),
    ],
    ids=["BOUNDING_BOX", "KEYPOINTS", "POSE_KEYPOINT", "document"],
)
def test_a_record_is_used_or_refused(record, use, leaves):
    use(record)
    refused = 0
    for number in range(COUNT):
        value = mutated(record, leaves, random.Random(number))
        try:
            use(value)
        except ValueError as error:
            refused += 1
            assert OURS.search(str(error)) and len(str(error)) < 1000, f"{number}: {error}"
        except Exception as error:
            raise AssertionError(f"{number}: {type(error).__name__} {error} for {str(value)[:2000]}") from error
    assert COUNT * 0.2 < refused < COUNT * 0.95


# --- limits: refused before anything is made ---


def document(width: int, height: int, objects: int = 1, frames: int = 1, mask: tuple[int, int] | None = None) -> str:
    runs = {"mask": {"size": list(mask), "counts": [mask[0] * mask[1]]}} if mask else {}
    frame = {"width": width, "height": height, "objects": [{"box": [0, 0, 1, 1], **runs}] * objects}
    return json.dumps({"format": json_document.FORMAT, "frames": [frame] * frames})


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: json_document.read_document(document(30_000, 30_000)), "an image has at most 134217728"),
        (
            lambda: json_document.read_document(document(64, 48, mask=(30_000, 30_000))),
            "an image has at most 134217728",
        ),
        (lambda: json_document.read_document(document(64, 48).replace("64", "9" * 4000)), "integer of 13288 bits"),
        (
            lambda: json_document.read_document(document(64, 48).replace("64", "9" * 5000)),
            "a number in it has too many",
        ),
        (lambda: json_document.read_document(document(8192, 8192, 40, mask=(8192, 8192))).masks(), "40 masks of 8192"),
        (
            lambda: masks.boxes_to_masks([[BOX] * 3000], 1024, 1024),
            f"3001 masks of 1024 x 1024 .* at most {MAX_MASK_PIXELS}",
        ),
        (lambda: masks.fit_masks(torch.ones(64, 2, 2), 8192, 8192), "64 masks of 8192 x 8192"),
        (lambda: segs.to_segs(torch.zeros(1, 1).expand(8192, 8192)[..., None], [BOX] * 64, None, 9999.0), "64 crops"),
        (lambda: keypoints.check_keypoints([KEYPOINTS[0] | {"width": 10**9}]), "an image has at most 134217728"),
        (lambda: pose_keypoint.check_pose(POSE[0] | {"canvas_width": 10**9}), "an image has at most 134217728"),
        (lambda: keypoints.keypoint_masks([KEYPOINTS[0] | {"width": 2**24}] * 2, "hull"), "6 masks of 16777216 x 48"),
    ],
)
def test_a_small_record_cannot_ask_for_much_memory(make, words):
    import resource  # not on Windows

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=words):
        make()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_mask_of_noise_is_not_a_million_boxes():
    mask = torch.zeros(1, 800, 800)
    mask[:, ::2, ::2] = 1
    with pytest.raises(ValueError, match="at least 160000 separate areas of 1 pixels or more, and at most 100000"):
        masks.masks_to_boxes(mask, True, 1)
    assert masks.masks_to_boxes(mask, True, 2) == [[]]


# --- masks of other packs ---


def test_masks_of_another_size_fit_the_images():
    mask = torch.zeros(2, 24, 32)
    mask[0, :12], mask[1, 6:9, 8:16] = 1, 0.5
    first, second = masks.split_masks_per_image(mask, [[BOX], [BOX]], SIZE)
    assert first.shape == second.shape == (1, *SIZE) and set(second.unique().tolist()) == {0.0, 0.5}
    assert first[0, :24].all() and not first[0, 24:].any()
    assert masks.masks_to_boxes(second, False) == [[{"x": 16.0, "y": 12.0, "width": 16.0, "height": 6.0, "score": 1.0}]]
    read = json_document.read_document(document(64, 48, mask=(24, 32)))
    own = read.masks()
    assert own is not None and own.shape == (1, 48, 64)


def test_no_masks_for_no_boxes():
    for empty in (torch.zeros(0, 5, 5), torch.zeros(1, 64, 64)):
        assert [part.shape for part in masks.split_masks_per_image(empty, [[], []], SIZE)] == [(0, *SIZE)] * 2
    assert masks.masks_to_boxes(torch.zeros(0, 5, 5), True) == []
    union, each = keypoints.keypoint_masks([], keypoints.HULL)
    assert union.shape == each.shape == (1, 64, 64)


# --- drawing ---

BREAKS = "\x85 \u2028 \u2029 \x1c \x1d \x1e \n \t \r \x0b".split(" ")


@pytest.mark.parametrize("mark", [*BREAKS, "\0", "\ud83d", "\ufeff", "\u202e", "\u0301" * 10_000, "x" * 100_000])
@pytest.mark.parametrize("fonts", [None, Fonts([])], ids=["the machine's", "none"])
def test_any_label_is_drawn_in_a_moment(mark, fonts):
    renderer, start = TextRenderer(fonts), time.monotonic()
    labels = [f"a{mark}b", mark, f"{mark}🐶 犬 קטה"]
    point = {"name": f"a{mark}b", "x": 9.0, "y": 9.0, "score": 1.0}
    pose = {"width": 64, "height": 48, "skeleton": [], "objects": [{"label": mark, "score": 1.0, "box": BOX}]}
    pose["objects"][0]["keypoints"] = [point]
    boxes = [{**BOX, "label": label, "score": 0.5} for label in labels]
    for found in (boxes, []):
        image = draw(
            torch.zeros(*SIZE, 3), found, None, pose, Style(keypoint_names=True), ColorMap(BY_NAME, []), renderer
        )
        assert image.any()
    for text in labels:
        assert renderer.width(renderer.shorten(text, 12, 50), 12) <= 50
    assert time.monotonic() - start < 5


def test_breaks_are_drawn_as_spaces_and_long_lines_end_early():
    renderer = TextRenderer(Fonts([]))
    assert {renderer.width(f"a{mark}b", 12) for mark in BREAKS} == {renderer.width("a b", 12)}
    assert renderer.width("x" * 100_000, 12) == renderer.width("x" * 499 + "…", 12)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2000, 3), (3, 2000), (48, 64)])
@pytest.mark.parametrize("width, text", [(0, 0), (1, 1), (100, 500)])
def test_any_box_and_keypoint_is_drawn_on_any_image(size, width, text):
    corners = [(0, 0, 1, 1), (-1e308, -1e308, 1.7e308, 1.7e308), (1e30, 0, 0, 0), (-5, -5, 1e9, 1e9), (5, 5, 0, 0)]
    boxes = [
        dict(zip(BOX, map(float, sides), strict=True)) | {"label": "犬", "score": 1e300 * index}
        for index, sides in enumerate(corners)
    ]
    far = float(MAX_POSITION)
    points = [
        {"name": "n", "x": x, "y": y, "score": 1.0}
        for x, y in ((0.0, 0.0), (far, far), (-far, far), (1.0, -far), (far, -3.0), (-far, 1.0))
    ]
    thing = {"label": "", "score": 1.0, "box": boxes[1], "keypoints": points}
    bones = [[index, index + 1] for index in range(5)]
    pose = {"width": size[1], "height": size[0], "skeleton": bones, "objects": [thing]}
    style = Style(keypoint_names=True, line_width=width, text_size=text)
    start = time.monotonic()
    image = draw(torch.zeros(*size, 3), boxes, torch.ones(5, *size), pose, style, ColorMap(BY_NAME, []), RENDERER)
    assert image.shape == (*size, 3) and image.any()
    for shape in keypoints.SHAPES:
        assert keypoints.keypoint_masks([pose], shape, margin=16384.0)[1].all()
    assert time.monotonic() - start < 5


RENDERER = TextRenderer(Fonts([]))


def test_a_box_over_all_edges_is_drawn_like_one_a_little_larger_than_the_image():
    near, far = (
        draw(
            torch.zeros(*SIZE, 3),
            [{"x": 8.0, "y": -reach, "width": reach, "height": 2 * reach}],
            None,
            None,
            Style(line_width=4),
            ColorMap(BY_NAME, []),
            RENDERER,
        )
        for reach in (200.0, 1e300)
    )
    assert torch.equal(near, far) and near.any()


# --- names ---


def test_names_are_split_at_every_break_and_every_script_s_commas():
    assert split_names("a\x85b\u2028c\u2029d\x1ce\x0bf") == list("abcdef")
    for mark in COMMAS + SEMICOLONS:
        assert split_names(f"red fox{mark} dog") == ["red fox", "dog"]


# --- what is saved can be loaded ---


def test_an_animal_keeps_its_label_and_scores_as_a_pose():
    (frame,) = pose_keypoint.from_pose_keypoint(POSE)
    assert [(obj["label"], obj["score"]) for obj in frame["objects"]] == [("runner", 0.5), ("dog", 0.9)]
    there = pose_keypoint.to_pose_keypoint([frame])
    assert pose_keypoint.from_pose_keypoint(there) == [frame]
    plain = {key: value for key, value in POSE[0].items() if key != "animal_details"}
    (frame,) = pose_keypoint.from_pose_keypoint(plain | {"animals": [np.array(plain["animals"][0]).reshape(17, 3)]})
    assert [(obj["label"], obj["score"]) for obj in frame["objects"]] == [("runner", 0.5), ("animal", 1.0)]


@pytest.mark.parametrize("number", range(30))
def test_what_is_saved_loads_as_it_was(number):
    rng = random.Random(number)
    size = rng.randint(1, 40), rng.randint(1, 60)
    frames = [
        [
            {side: rng.uniform(0, 50) for side in BOX}
            | rng.choice(({}, {"label": "犬\u2028"}, {"score": rng.uniform(-2, 2)}))
            for _ in range(rng.randint(1, 5))
        ]
        for _ in range(rng.randint(1, 3))
    ]
    own = (torch.rand(sum(map(len, frames)), *size, generator=torch.Generator().manual_seed(number)) > 0.7).float()
    parts = masks.split_masks_per_image(own, frames, size)
    text = json_document.write_document(
        "t", "p", [json_document.frame_record(size[1], size[0], *one) for one in zip(frames, parts, strict=True)]
    )
    read = json_document.read_document(text)
    assert read.bounding_boxes() == [[rounded(box) for box in boxes] for boxes in frames]
    again = read.masks()
    assert again is not None and torch.equal(again, own) and (read.task, read.prompt) == ("t", "p")
