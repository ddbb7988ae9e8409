"""What answers become on wires and in files: boxes, masks, keypoints, poses, SEGS, documents, drawings. No model, no
server.
"""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from mulan_nodes.mulan.images.fonts import Fonts
from mulan_nodes.mulan.images.text_drawing import TextRenderer
from mulan_nodes.visionllm_nodes.detections import (
    bounding_boxes,
    json_document,
    keypoints,
    masks,
    pose_keypoint,
    segs,
    skeletons,
)
from mulan_nodes.visionllm_nodes.detections.colors import COUNT, palette_color, text_color
from mulan_nodes.visionllm_nodes.detections.drawing import BY_NAME, BY_OBJECT, ColorMap, Style, draw
from mulan_nodes.visionllm_nodes.detections.names import split_names
from mulan_nodes.visionllm_nodes.detections.results import Detections, Keypoints

PERSON, ANIMAL, HAND, FACE = (
    skeletons.PRESETS[name] for name in ("person, 17 (COCO)", "animal, 17 (AP-10K)", "hand, 21", "face, 68 (300W)")
)


def detection(boxes, with_masks: bool = True, size=(40, 60)) -> Detections:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    drawn = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(drawn, boxes.int().tolist(), strict=False):
        mask[max(0, y1) : y2, max(0, x1) : x2] = True
    labels = torch.arange(len(boxes)) % 2
    return Detections(
        size, ("犬", "cat"), labels, torch.linspace(0.9, 0.5, len(boxes)), boxes, drawn if with_masks else None
    )


def record(
    skeleton: skeletons.Skeleton,
    label: str = "thing",
    score: float = 0.8,
    at=(10.0, 10.0),
    step: float = 3.0,
    left_out=(),
) -> dict:
    """KEYPOINTS of one object in a image of 200 x 300, whose points lie on a grid."""
    points = [
        {
            "name": name,
            "x": at[0] + step * (number % 9),
            "y": at[1] + step * (number // 9),
            "score": 0.0 if name in left_out else 0.6,
        }
        for number, name in enumerate(skeleton.keypoints)
    ]
    thing = {
        "label": label,
        "score": score,
        "box": {"x": 5.0, "y": 5.0, "width": 50.0, "height": 60.0},
        "keypoints": points,
    }
    return {"width": 300, "height": 200, "objects": [thing], "skeleton": [list(bone) for bone in skeleton.bones]}


# --- boxes ---


def test_boxes_are_cut_to_the_image_and_hold_plain_numbers():
    frames = bounding_boxes.to_bounding_boxes([detection([[-5, 2, 30, 50], [10, 10, 70, 20]]), detection([])])
    assert frames == [
        [
            {"x": 0.0, "y": 2.0, "width": 30.0, "height": 38.0, "label": "犬", "score": pytest.approx(0.9)},
            {"x": 10.0, "y": 10.0, "width": 50.0, "height": 10.0, "label": "cat", "score": pytest.approx(0.5)},
        ],
        [],
    ]
    json.dumps(frames)


BOX = {"x": 1, "y": 2, "width": 3, "height": 4}


@pytest.mark.parametrize(
    "value, frames, counts",
    [
        (BOX, 3, [1, 1, 1]),
        ([BOX, BOX], 2, [2, 2]),
        ([[BOX], []], 2, [1, 0]),
        ([[BOX]], 2, [1, 1]),
        ([], 2, [0, 0]),
        ([[]], None, [0]),
        ([[], [BOX]], None, [0, 1]),
        ([{**BOX, "score": torch.tensor(0.5), "label": None, "metadata": {"desc": "x"}}], 1, [1]),
    ],
)
def test_every_form_of_boxes_is_read(value, frames, counts):
    read = bounding_boxes.boxes_per_image(value, frames)
    assert [len(boxes) for boxes in read] == counts
    assert all(isinstance(box[side], float) for boxes in read for box in boxes for side in bounding_boxes.SIDES)
    assert all(box.get("score", 1.0) in (0.5, 1.0) and "label" not in box for boxes in read for box in boxes)


@pytest.mark.parametrize(
    "value, frames, words",
    [
        (None, 1, "this is nothing"),
        ("x", 1, "this is a str"),
        ([BOX, 3], 1, "box 2 must be a dict"),
        ([[BOX], BOX], 1, "bounding box 1 must be a dict"),
        ([[BOX], [{"x": 1}]], 2, "box 1 of image 2 has no 'y'; it has 'x'"),
        ({**BOX, "width": "wide"}, 1, "'width' of bounding box 1 must be a number"),
        ({**BOX, "x": float("nan")}, 1, "'x' of bounding box 1 is not a finite number"),
        ({**BOX, "height": -1}, 1, "'height' of bounding box 1 is below zero"),
        ([[BOX], [BOX]], 3, "boxes for 2 images, but 3 images are connected"),
        ([[BOX], 7], 2, "entry 2 is a int"),
    ],
)
def test_errors_name_the_wrong_box(value, frames, words):
    with pytest.raises(ValueError, match=words):
        bounding_boxes.boxes_per_image(value, frames)


def test_the_order_is_score_then_from_above_then_from_the_left():
    boxes = [
        {**BOX, "x": x, "y": y, "score": score} for x, y, score in ((9, 5, 0.5), (1, 5, 0.5), (0, 0, 0.4), (3, 1, 0.5))
    ] + [dict(BOX)]
    assert [(box["x"], box["y"]) for box in bounding_boxes.sort_boxes(boxes)] == [
        (1, 2),
        (3, 1),
        (1, 5),
        (9, 5),
        (0, 0),
    ]


def test_names_are_split_at_commas_of_all_scripts():
    assert split_names("a cat, dog，犬、猫\n\n قط، كلب; a cat \r\nbird") == [
        "a cat",
        "dog",
        "犬",
        "猫",
        "قط",
        "كلب",
        "bird",
    ]


# --- masks ---


@pytest.mark.parametrize("with_masks", [True, False])
def test_masks_go_with_the_boxes(with_masks):
    found = [
        detection([[0, 0, 10, 10], [20, 20, 30, 30]], with_masks),
        detection([], with_masks),
        detection([[5, 5, 8, 9]], with_masks),
    ]
    union, each = masks.union_mask(found), masks.object_masks(found)
    assert union.shape == (3, 40, 60) and each.shape == (3, 40, 60) and union.dtype == each.dtype == torch.float32
    assert union.sum((1, 2)).tolist() == [200, 0, 12] and each.sum((1, 2)).tolist() == [100, 100, 12]
    nothing = [detection([], with_masks)]
    assert (
        masks.union_mask(nothing).shape == masks.object_masks(nothing).shape == (1, 40, 60)
        and not masks.object_masks(nothing).any()
    )


def test_boxes_fill_every_pixel_they_touch():
    outside = {"x": 100.0, "y": 0.0, "width": 5.0, "height": 5.0}
    union, each = masks.boxes_to_masks([[{"x": 1.5, "y": -3.0, "width": 2.0, "height": 5.0}, outside]], 6, 8)
    assert each.shape == (2, 6, 8) and not each[1].any()
    assert torch.equal(each[0].nonzero().amin(0), torch.tensor([0, 1])) and torch.equal(
        each[0].nonzero().amax(0), torch.tensor([1, 3])
    )
    assert torch.equal(union[0], each[0])


def test_boxes_of_masks_one_or_one_for_each_area():
    mask = torch.zeros(2, 20, 30)
    mask[0, 2:5, 3:9], mask[0, 10:18, 20:30], mask[0, 0, 29] = 1, 0.5, 1
    whole, apart = masks.masks_to_boxes(mask, False), masks.masks_to_boxes(mask, True, 2)
    assert whole == [[{"x": 3.0, "y": 0.0, "width": 27.0, "height": 18.0, "score": 1.0}], []]
    assert [[bounding_boxes.box_corners(box) for box in boxes] for boxes in apart] == [
        [(20, 10, 30, 18), (3, 2, 9, 5)],
        [],
    ]


def test_a_mask_for_each_box():
    frames = [[BOX, BOX], [], [BOX]]
    assert [len(part) for part in masks.split_masks_per_image(torch.zeros(3, 4, 4), frames)] == [2, 0, 1]
    assert [len(part) for part in masks.split_masks_per_image(torch.zeros(1, 4, 4), [[], []])] == [0, 0]
    with pytest.raises(ValueError, match="2 masks for 3 boxes"):
        masks.split_masks_per_image(torch.zeros(2, 4, 4), frames)


# --- keypoints ---


def test_own_names_get_the_bones_that_are_known():
    assert skeletons.bones_of(["Left_Wrist", "left elbow", "left shoulder", "wing"]) == [(2, 1), (1, 0)]
    assert skeletons.bones_of(["left front paw", "left elbow", "left shoulder"]) == [(2, 1), (1, 0)]
    assert skeletons.bones_of(["head", "wing"]) == []


def test_keypoints_of_the_model():
    found = Keypoints(
        (40, 60),
        ("person",),
        ("nose", "tail"),
        torch.tensor([0]),
        torch.tensor([0.7]),
        torch.tensor([[1.0, 2, 90, 30]]),
        torch.tensor([[[5.0, 6], [70, 8]]]),
    )
    (frame,) = keypoints.to_keypoints([found], [(0, 1)])
    assert (frame["width"], frame["height"], frame["skeleton"]) == (60, 40, [[0, 1]])
    (thing,) = frame["objects"]
    assert thing["box"] == {"x": 1.0, "y": 2.0, "width": 59.0, "height": 28.0} and thing["score"] == pytest.approx(0.7)
    assert thing["keypoints"] == [
        {"name": "nose", "x": 5.0, "y": 6.0, "score": 1.0},
        {"name": "tail", "x": 70.0, "y": 8.0, "score": 1.0},
    ]
    assert keypoints.check_keypoints([frame]) == [frame]
    with pytest.raises(ValueError, match="must be a list with a dict"):
        keypoints.check_keypoints([{"people": []}])


@pytest.mark.parametrize("seed", range(20))
def test_a_convex_hull_holds_all_points_and_turns_one_way(seed):
    rng = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in rng.integers(0, 9, (12, 2))]  # a grid: repeated and collinear points
    hull = keypoints.convex_hull(points)
    assert hull[0] == min(points) and set(hull) <= set(points)
    for (x1, y1), (x2, y2), (x3, y3) in zip(hull, hull[1:] + hull[:1], hull[2:] + hull[:2], strict=True):
        assert (x2 - x1) * (y3 - y2) - (y2 - y1) * (x3 - x2) > 0
        assert all((x2 - x1) * (y - y1) - (y2 - y1) * (x - x1) >= 0 for x, y in points)


@pytest.mark.parametrize(
    "points, hull",
    [
        ([(3.0, 4.0)], [(3.0, 4.0)]),
        ([(3.0, 4.0), (3.0, 4.0), (1.0, 9.0)], [(1.0, 9.0), (3.0, 4.0)]),
        ([(float(3 * step), float(2 * step)) for step in (2, 0, 1, 4, 3)], [(0.0, 0.0), (12.0, 8.0)]),
        ([(5.0, 1.0), (5.0, 3.0), (5.0, 2.0)], [(5.0, 1.0), (5.0, 3.0)]),
    ],
)
def test_the_hull_of_points_on_a_line_is_its_ends(points, hull):
    assert keypoints.convex_hull(points) == hull


def test_regions_of_chosen_keypoints():
    frame = record(PERSON, left_out=("left ear",))
    names = ["Nose", "left_eye", "left ear"]
    ((box,),) = keypoints.keypoint_boxes([frame], names, 0.5, 2)
    assert bounding_boxes.box_corners(box) == (8, 8, 15, 12) and box["label"] == "thing"
    assert keypoints.keypoint_boxes([frame], names, 0.7, 2) == [[]]
    areas = []
    for shape in keypoints.SHAPES:
        union, each = keypoints.keypoint_masks([frame, {**frame, "objects": []}], shape, (), 0.0, 1)
        assert (
            union.shape == (2, 200, 300)
            and each.shape == (1, 200, 300)
            and torch.equal(union[0], each[0])
            and not union[1].any()
        )
        areas.append(each.sum().item())
    assert 0 < areas[0] < areas[1] < areas[2] and each[0, 10:14, 10:32].all() and not each[0, :8].any()
    assert json.loads(keypoints.points_json(keypoints.select_keypoints(frame["objects"][0], ["nose"], 0))) == [
        {"x": 10, "y": 10}
    ]
    with pytest.raises(ValueError, match="no keypoint is named 'beak'; the names are nose, left eye"):
        keypoints.check_keypoint_names([frame], ["nose", "beak"])
    empty, single = keypoints.keypoint_masks([{**frame, "objects": []}], keypoints.HULL)
    assert empty.shape == single.shape == (1, 200, 300) and not single.any()


def test_a_pose_that_core_and_controlnet_aux_read():
    """Core's drawer reshapes the lists to 18, 70, 21 and 21 triplets; aux's reader leaves out every point whose
    confidence is below 1.
    """
    (pose,) = pose_keypoint.to_pose_keypoint([record(PERSON, "runner", left_out=("left ankle",))])
    assert (pose["canvas_width"], pose["canvas_height"]) == (300, 200) and "animals" not in pose
    (person,) = pose["people"]
    lengths = {
        "pose_keypoints_2d": 18,
        "face_keypoints_2d": 70,
        "hand_left_keypoints_2d": 21,
        "hand_right_keypoints_2d": 21,
    }
    for part, count in lengths.items():
        triples = np.array(person[part], dtype=np.float32).reshape(count, 3)
        assert set(triples[:, 2]) <= {0.0, 1.0} and not triples[triples[:, 2] == 0].any()
    body = np.array(person["pose_keypoints_2d"]).reshape(18, 3)
    assert body[:, 2].sum() == 17 and body[13, 2] == 0  # 16 that were found, and the neck
    shoulders = body[[2, 5], :2]
    assert np.allclose(body[1, :2], shoulders.mean(0)) and tuple(body[0, :2]) == (10, 10)
    assert (
        person["scores"]["object"] == 0.8
        and person["scores"]["pose_keypoints_2d"][0] == 0.6
        and person["label"] == "runner"
    )
    json.dumps(pose)


def test_hands_faces_and_animals_have_their_places():
    left, right, face, animal = pose_keypoint.to_pose_keypoint(
        [record(HAND, "left hand"), record(HAND, "hand"), record(FACE, "face"), record(ANIMAL, "dog")]
    )
    for frame, part, count in (
        (left, "hand_left_keypoints_2d", 21),
        (right, "hand_right_keypoints_2d", 21),
        (face, "face_keypoints_2d", 68),
    ):
        (person,) = frame["people"]
        assert (
            sum(person[part][2::3]) == count
            and sum(sum(numbers[2::3]) for name, numbers in person.items() if name.endswith("_2d")) == count
        )
    assert (
        animal["people"] == []
        and animal["version"] == "ap10k"
        and len(animal["animals"][0]) == 51
        and sum(animal["animals"][0][2::3]) == 17
    )
    with pytest.raises(ValueError, match="none of the keypoints belongs to OpenPose.*left wheel"):
        pose_keypoint.to_pose_keypoint([record(skeletons.Skeleton("car", ("left wheel", "door"), ()))])


@pytest.mark.parametrize("skeleton", [PERSON, ANIMAL, HAND, FACE])
def test_a_pose_converted_and_back_keeps_every_point_its_score_and_the_label(skeleton):
    frame = record(skeleton, left_out=skeleton.keypoints[3:4])
    (back,) = pose_keypoint.from_pose_keypoint(pose_keypoint.to_pose_keypoint([frame]))
    (thing,) = back["objects"]
    assert (thing["label"], thing["score"]) == ("thing", 0.8)
    there = [point for point in thing["keypoints"] if point["score"] > 0]
    found = {point["name"].removeprefix("right hand "): (point["x"], point["y"], point["score"]) for point in there}
    found.pop("neck", None) if skeleton is PERSON else None
    assert found == {
        point["name"]: (point["x"], point["y"], 0.6) for point in frame["objects"][0]["keypoints"] if point["score"] > 0
    }
    assert all(max(bone) < len(thing["keypoints"]) for bone in back["skeleton"]) and len(back["skeleton"]) >= 16
    (again,) = pose_keypoint.to_pose_keypoint([back])
    assert again["people"] or again["animals"]


def test_poses_of_other_nodes():
    """As controlnet_aux's DWPose (None where a part was off), its AnimalPose (nested) and ComfyUI's SDPose (fractional
    scores, feet) write them.
    """
    body = [10.0, 20.0, 1.0] * 17 + [0.0, 0.0, 0.0]
    dwpose = {
        "people": [
            {
                "pose_keypoints_2d": body,
                "face_keypoints_2d": None,
                "hand_left_keypoints_2d": None,
                "hand_right_keypoints_2d": None,
            }
        ],
        "canvas_height": 100,
        "canvas_width": 200,
    }
    animal = {"version": "ap10k", "animals": [[[5.0, 6.0, 0.9]] * 17], "canvas_height": 100, "canvas_width": 200}
    sdpose = {
        "canvas_width": 200,
        "canvas_height": 100,
        "people": [
            {
                "pose_keypoints_2d": [10.0, 20.0, 0.7] * 18,
                "foot_keypoints_2d": [1.0, 2.0, 0.5] * 6,
                "face_keypoints_2d": [3.0, 4.0, 0.2] * 70,
                "hand_left_keypoints_2d": [0.0] * 63,
                "hand_right_keypoints_2d": [0.0] * 63,
            }
        ],
    }
    normalised = {"canvas_width": 200, "canvas_height": 100, "people": [{"pose_keypoints_2d": [0.5, 0.25, 1.0] * 18}]}
    first, second, third, fourth = pose_keypoint.from_pose_keypoint([dwpose, animal, sdpose, normalised])
    assert [
        sum(point["score"] > 0 for point in frame["objects"][0]["keypoints"])
        for frame in (first, second, third, fourth)
    ] == [17, 17, 94, 18]
    assert first["objects"][0]["label"] == "person" and second["objects"][0]["label"] == "animal"
    assert third["objects"][0]["keypoints"][0]["score"] == 0.7 and len(third["objects"][0]["keypoints"]) == 18 + 6 + 70
    assert (fourth["objects"][0]["keypoints"][0]["x"], fourth["objects"][0]["keypoints"][0]["y"]) == (100, 25)
    assert pose_keypoint.from_pose_keypoint({"canvas_width": 8, "canvas_height": 8, "people": []})[0]["objects"] == []


@pytest.mark.parametrize(
    "value, words",
    [
        ([{"people": []}], 'image 1 of the POSE_KEYPOINT must be a dict with "canvas_width"'),
        (
            [{"canvas_width": 8, "canvas_height": 8, "people": [3]}],
            "person 1 of image 1 of the POSE_KEYPOINT must be a dict",
        ),
        (
            [{"canvas_width": 8, "canvas_height": 8, "people": [{"pose_keypoints_2d": [1.0] * 75}]}],
            '"pose_keypoints_2d" of person 1 of image 1 of the POSE_KEYPOINT must hold .* at most 18 keypoints; it '
            "holds 75",
        ),
    ],
)
def test_errors_name_the_wrong_pose(value, words):
    with pytest.raises(ValueError, match=words):
        pose_keypoint.from_pose_keypoint(value)


# --- SEGS ---


def test_segs_as_impact_s_nodes_read_them():
    image = torch.rand(40, 60, 3)
    boxes = [
        {"x": 50.0, "y": 2.2, "width": 9.5, "height": 8.0, "label": "犬", "score": 0.5},
        {"x": 70.0, "y": 0.0, "width": 5.0, "height": 5.0},
    ]
    (height, width), (seg,) = segs.to_segs(image, boxes, None, 2.0)
    assert (height, width) == (40, 60)
    assert seg._fields == (
        "cropped_image",
        "cropped_mask",
        "confidence",
        "crop_region",
        "bbox",
        "label",
        "control_net_wrapper",
    )
    x1, y1, x2, y2 = seg.crop_region
    assert (x2 - x1, y2 - y1) == (20, 18) and x2 == 60 and all(type(side) is int for side in seg.crop_region)
    assert seg.bbox == [50, 2, 60, 11] and (seg.confidence, seg.label, seg.control_net_wrapper) == (0.5, "犬", None)
    assert (
        isinstance(seg.cropped_mask, np.ndarray)
        and seg.cropped_mask.dtype == np.float32
        and seg.cropped_mask.shape == (y2 - y1, x2 - x1)
    )
    assert seg.cropped_mask.sum() == 10 * 9 and torch.equal(seg.cropped_image, image[None, y1:y2, x1:x2])
    mask = torch.zeros(2, 40, 60)
    mask[0, 5, 55] = 1
    assert segs.to_segs(image, boxes, mask, 100)[1][0].crop_region == [0, 0, 60, 40]
    assert segs.to_segs(image, boxes, mask)[1][0].cropped_mask.sum() == 1


# --- documents ---


def test_a_document_written_and_read_is_the_same():
    found = [detection([[0, 0, 10.126, 10], [20, 20, 30, 30]]), detection([])]
    boxes = bounding_boxes.to_bounding_boxes(found)
    frames = [
        json_document.frame_record(60, 40, part, one.masks, text="two") for part, one in zip(boxes, found, strict=False)
    ]
    text = json_document.write_document("detect", "犬, cat", frames)
    assert (
        "\n" not in text
        and "犬" in text
        and text == json_document.write_document("detect", "犬, cat", json.loads(text)["frames"])
    )
    read = json_document.read_document(text)
    assert (read.task, read.prompt, read.texts) == ("detect", "犬, cat", ["two", "two"])
    first, second = read.bounding_boxes()
    assert (
        first[0] == {"x": 0.0, "y": 0.0, "width": 10.13, "height": 10.0, "label": "犬", "score": 0.9} and second == []
    )
    assert torch.equal(read.masks(), masks.object_masks(found))
    assert json_document.read_document(json_document.write_document("ask", "?", [], "words")).texts == ["words"]


def test_a_document_of_keypoints():
    frame = record(ANIMAL, "狗", left_out=("neck",))
    read = json_document.read_document(
        json_document.write_document("pose", "狗", [json_document.frame_record(300, 200, keypoints=frame)])
    )
    assert read.keypoints() == [frame] and read.masks() is None
    assert read.bounding_boxes() == [[{**frame["objects"][0]["box"], "label": "狗", "score": 0.8}]]


@pytest.mark.parametrize(
    "mask",
    [torch.zeros(3, 4), torch.ones(3, 4), (torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) > 0.5).float()],
)
def test_run_lengths_are_coco_s(mask):
    packed = json_document.encode_rle(mask)
    values = itertools.chain.from_iterable([number % 2] * count for number, count in enumerate(packed["counts"]))
    assert (
        packed["size"] == list(mask.shape)
        and list(values) == mask.T.flatten().int().tolist()
        and all(packed["counts"][1:])
    )


def good() -> dict:
    return {
        "format": json_document.FORMAT,
        "task": "detect",
        "prompt": "",
        "frames": [{"width": 4, "height": 2, "objects": [{"box": [0, 0, 1, 1]}]}],
    }


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda text: text[:-1], "this is not valid JSON: "),
        (lambda text: "[" * 100000, "this is not valid JSON: "),
        (lambda text: "[]", 'must be an object with "format"'),
        (lambda text: text.replace("nodes/1", "nodes/2"), "has the format 'visionllm-nodes/2', but this version"),
        (lambda text: text.replace('"frames": [', '"frames": 3, "f": ['), "frames of this document must be a list"),
        (
            lambda text: text.replace('"width": 4', '"width": 0'),
            r"frames\[0\].width of this document must be a whole number",
        ),
        (
            lambda text: text.replace("[0, 0, 1, 1]", "[0, 0, 1]"),
            r"frames\[0\].objects\[0\].box of this document must be four numbers",
        ),
        (lambda text: text.replace("[0, 0, 1, 1]", "[0, 0, NaN, 1]"), r"objects\[0\].box"),
        (lambda text: text.replace("[0, 0, 1, 1]", "[0, 0, 1, -1]"), r"objects\[0\].box"),
        (
            lambda text: text.replace("[0, 0, 1, 1]", '[0, 0, 1, 1], "score": "high"'),
            r"objects\[0\].score of this document must be a number",
        ),
        (
            lambda text: text.replace("[0, 0, 1, 1]", '[0, 0, 1, 1], "label": 3'),
            r"objects\[0\].label of this document must be a string",
        ),
        (
            lambda text: text.replace("[0, 0, 1, 1]", '[0, 0, 1, 1], "keypoints": [{"name": "a", "x": 1}]'),
            r"keypoints\[0\] of this document must be",
        ),
        (
            lambda text: text.replace("[0, 0, 1, 1]", '[0, 0, 1, 1], "mask": {"size": [2, 4], "counts": [7]}'),
            r"mask of this document must be",
        ),
        (
            lambda text: text.replace('"height": 2', '"height": 2, "skeleton": [[0, 1]]'),
            r"skeleton\[0\] of this document must be two indices",
        ),
    ],
)
def test_what_is_wrong_with_a_document_is_named_with_its_place(change, words):
    text = json.dumps(good())
    json_document.read_document(text)
    with pytest.raises(ValueError, match=words):
        json_document.read_document(change(text))


# --- drawing ---


def test_colors_stay_apart_and_text_on_them_can_be_read():
    colors = [palette_color(number) for number in range(COUNT)]
    assert len(set(colors)) == COUNT and palette_color(COUNT) == palette_color(0)
    nearest = min(np.linalg.norm(np.subtract(a, b)) for a, b in itertools.combinations(colors[:12], 2))
    assert nearest > 80
    assert text_color((255, 255, 0)) == (0, 0, 0) and text_color((120, 0, 160)) == (255, 255, 255)


def drawn(boxes=(), mask=None, pose=None, how=BY_NAME, lettering=None, image=None, **style) -> np.ndarray:
    names = [box.get("label", "") for box in boxes]
    image = torch.full((120, 200, 3), 0.5) if image is None else image
    frame = draw(image, boxes, mask, pose, Style(**style), ColorMap(how, names), lettering or TextRenderer(Fonts([])))
    return (frame.numpy() * 255).round().astype(int)


def box_at(x, y, width, height, **more) -> dict:
    return {"x": float(x), "y": float(y), "width": float(width), "height": float(height), **more}


def test_a_box_is_drawn_on_its_outermost_pixels():
    image = drawn([box_at(20, 30, 50, 40)], line_width=2)
    changed = (image != 128).any(-1)
    rows, columns = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (30, 69, 20, 69) and not changed[33:67, 23:67].any()
    assert (drawn([box_at(199.6, 119.7, 0.2, 0.2), box_at(0, 0, 200, 120)]) != 128).any()


def test_one_color_for_each_name_or_for_each_object():
    boxes = [box_at(5, 5, 20, 20, label="cat"), box_at(40, 5, 20, 20, label="dog"), box_at(80, 5, 20, 20, label="cat")]
    by_name, by_object = (drawn(boxes, how=how, names=False) for how in (BY_NAME, BY_OBJECT))
    corners = [tuple(by_name[5, x]) for x in (5, 40, 80)]
    assert corners[0] == corners[2] != corners[1] and len({tuple(by_object[5, x]) for x in (5, 40, 80)}) == 3


def test_masks_are_translucent():
    mask = torch.zeros(1, 120, 200)
    mask[0, 40:80, 50:100] = 1
    half, none, whole = (
        drawn([box_at(50, 40, 50, 40)], mask, mask_opacity=fill, line_width=1) for fill in (0.5, 0.0, 1.0)
    )
    assert np.array_equal(half[60, 75], (np.array(palette_color(0)) * 0.5 + 64).astype(int)) and np.array_equal(
        none[60, 75], [128] * 3
    )
    assert np.array_equal(whole[60, 75], palette_color(0)) and np.array_equal(half[20, 20], [128] * 3)


@pytest.mark.parametrize("name", ["左の犬", "قطة صغيرة", "छोटा कुत्ता", "한국어 고양이", "🐶 dog", "кошка"])
def test_names_of_any_script_are_drawn_even_without_fonts(name):
    """Without a font for them, characters stand as their code points in boxes; nothing fails, and nothing is empty."""
    for lettering in (TextRenderer(sample=name), TextRenderer(Fonts([]))):
        with_name = drawn([box_at(40, 50, 100, 60, label=name, score=0.5)], lettering=lettering)
        plain = drawn([box_at(40, 50, 100, 60, score=0.5)], lettering=lettering)
        assert (with_name != plain).any(-1).sum() > 200


def test_labels_keep_to_the_image_and_off_each_other():
    class Recorder(TextRenderer):
        def __init__(self):
            super().__init__(Fonts([]))
            self.at = []

        def draw(self, image, left, baseline, text, size, colour):
            width = super().draw(image, left, baseline, text, size, colour)
            if text:
                self.at.append((left, baseline - size, left + width, baseline, text))
            return width

    letters = Recorder()
    long = "a very long phrase that tells of the dog beside the large tree in front of the old house"
    drawn(
        [
            box_at(0, 0, 60, 50, label="first", score=0.9),
            box_at(2, 2, 50, 40, label="second"),
            box_at(150, 90, 50, 30, label=long, score=0.8),
        ],
        lettering=letters,
    )
    places = [place[:4] for place in letters.at]
    assert all(left >= 0 and top >= -2 and right <= 200 and bottom <= 120 for left, top, right, bottom in places)
    assert not any(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in itertools.combinations(places, 2)
    )
    texts = [place[4] for place in letters.at]
    assert "0.90" in texts and "0.80" in texts and any(text.endswith("…") for text in texts)


def test_keypoints_and_bones_are_drawn_where_they_were_found():
    frame = record(PERSON, "人", step=15.0, left_out=("nose",))
    black = torch.zeros(200, 300, 3)
    image = drawn(pose=frame, image=black, names=False, scores=False)
    found = [point for point in frame["objects"][0]["keypoints"] if point["score"] > 0]
    assert all(image[round(point["y"]), round(point["x"])].any() for point in found) and not image[:8, :8].any()
    named = drawn(pose=frame, image=black, names=False, scores=False, keypoint_names=True)
    assert (named != image).any(-1).sum() > 200


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 4), (2, 3, 3)])
def test_any_image_can_be_drawn_on(shape):
    frame = draw(
        torch.rand(shape),
        [box_at(1, 1, 5, 5, label="a long name", score=1)],
        None,
        None,
        Style(),
        ColorMap(BY_NAME, ["a long name"]),
        TextRenderer(Fonts([])),
    )
    assert frame.shape == (*shape[:2], 3) and frame.dtype == torch.float32
