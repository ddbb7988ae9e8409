"""What vision-language models write about places: every form, mixtures, what is broken, and units."""

from __future__ import annotations

import random

import pytest
import torch

from mulan_nodes.mulan.boundary.limits import MAX_ANSWER_PLACES
from mulan_nodes.visionllm_nodes.detections.answer_coordinates import (
    AUTO,
    COORDINATES,
    ORDERS,
    PIXELS,
    ImagePlaces,
    locate,
)
from mulan_nodes.visionllm_nodes.detections.json_document import frame_record, read_document, write_document
from mulan_nodes.visionllm_nodes.detections.keypoints import check_keypoints
from mulan_nodes.visionllm_nodes.detections.model_answers import read_answer

SIZE = 500, 800  # height, width


def read(text: str, coordinates: str = AUTO, order: str = AUTO, size=SIZE):
    (found,) = locate([read_answer(text)], [size], coordinates, order)
    return found


def boxes(found) -> list[tuple]:
    """(label, x1, y1, x2, y2), and the score where there is one."""
    return [
        (one["label"], *(round(v, 2) for v in (one["x"], one["y"], one["x"] + one["width"], one["y"] + one["height"])))
        + ((one["score"],) if "score" in one else ())
        for one in found.boxes
    ]


def points(found) -> list[tuple]:
    return [
        (one["label"], round(one["keypoints"][0]["x"], 2), round(one["keypoints"][0]["y"], 2)) for one in found.points
    ]


CAT, DOG = ("cat", 80, 100, 400, 300), ("dog", 8, 10, 16, 20)

BOX_FORMS = {
    "InternVL": "Sure: <ref>cat</ref><box>[[100, 200, 500, 600]]</box>, <ref>dog</ref><box>[[10, 20, 20, 40]]</box>.",
    "InternVL without special tokens": "cat[[100, 200, 500, 600]]\ndog[[10, 20, 20, 40]]",
    "a name alone has its tag": "<ref>cat</ref>[[100, 200, 500, 600]]\n<ref>dog</ref>[[10, 20, 20, 40]]",
    "Qwen-VL": "<ref>cat</ref><box>(100,200),(500,600)</box><ref>dog</ref><box>(10,20),(20,40)</box>",
    "Qwen2-VL": "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(500,600)<|box_end|>"
    "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(10,20),(20,40)<|box_end|>",
    "DeepSeek-VL2": "<|ref|>cat<|/ref|><|det|>[[100,200,500,600]]<|/det|> <|ref|>dog<|/ref|><|det|>[[10,20,20,40]]",
    "numbers in a box": "<ref>cat</ref><box>100 200 500 600</box> <ref>dog</ref><box>10,20,20,40</box>",
    "Gemini": '```json\n[{"box_2d":[200,100,600,500], "label":"cat"}, {"box_2d":[20,10,40,20], "label":"dog"}]\n```',
    "Florence-2": "cat<loc_100><loc_200><loc_500><loc_600>dog<loc_10><loc_20><loc_20><loc_40>",
}
PIXEL_FORMS = {
    "Qwen2.5-VL": '```json\n[{"bbox_2d":[80,100,400,300],"label":"cat"},\n{"bbox_2d":[8,10,16,20],"label":"dog"}]\n```',
    "Python": "[{'bbox_2d': (80, 100, 400, 300), 'label': 'cat'}, {'bbox_2d': (8, 10, 16, 20), 'label': 'dog'}]",
    "one object a line": '{"label": "cat", "bbox": [80, 100, 400, 300]}\n{"label": "dog", "bbox": [8, 10, 16, 20]}',
    "in an object": '{"objects": [{"name": "cat", "box": [80,100,400,300]}, {"name": "dog", "box": [8,10,16,20]}]}',
    "lists beside each other": '{"bboxes": [[80,100,400,300], [8,10,16,20]], "labels": ["cat", "dog"]}',
    "by name": '{"cat": [80, 100, 400, 300], "dog": [[8, 10, 16, 20]]}',
    "corners": '{"label": "cat", "bbox_2d": [[80,100],[400,300]]} {"label": "dog", "bbox_2d": [[8,10],[16,20]]}',
    "named corners": '[{"label":"cat","bbox":{"x1":80,"y1":100,"x2":400,"y2":300}},'
    '{"label":"dog","xmin":8,"ymin":10,"xmax":16,"ymax":20}]',
    "sides": '[{"label":"cat","x":80,"y":100,"width":320,"height":200},{"label":"dog","x":8,"y":10,"w":8,"h":10}]',
    "strings": '[{"label": "cat", "bbox": "80, 100, 400, 300"}, {"label": "dog", "bbox": "[8, 10, 16, 20]"}]',
    "prose": "The image shows two animals.\n- **cat**: [80, 100, 400, 300]\n- dog: [8, 10, 16, 20] (small)",
    "a name in each list": '[["cat", [80, 100, 400, 300]], ["dog", 8, 10, 16, 20]]',
    "pairs": "cat(80,100),(400,300) and dog(8,10),(16,20)",
    "full-width marks": "cat：［80，100，400，300］；dog：［8，10，16，20］",
}
POINT_FORMS = {
    "Qwen3-VL": ('[{"point_2d": [250, 900], "label": "nose"}]', AUTO),
    "Gemini": ('[{"point": [900, 250], "label": "nose"}]', AUTO),
    "Molmo": ('Here: <point x="25.0" y="90.0" alt="nose">nose</point>.', AUTO),
    "Molmo, several": ('<points x1="25" y1="90" alt="nose">nose</points>', AUTO),
    "Molmo 2": ('<points coords="1 1 250 900">nose</points>', AUTO),
    "tags with thousandths": ('<points x1="250" y1="900" alt="nose">nose</points>', AUTO),
    "a click": ("nose\npyautogui.click(x=0.25, y=0.9)", AUTO),
    "a click in pixels": ("click(start_box='(200,450)')", PIXELS),
    "a list": ("nose: [0.25, 0.9]", AUTO),
    "a tag with a pair": ("<point>250 900</point>", "0-1000"),
    "by name": ('{"nose": [200, 450]}', PIXELS),
    "x and y": ('{"label": "nose", "x": 200, "y": 450}', PIXELS),
}


@pytest.mark.parametrize("form", BOX_FORMS)
def test_a_form_says_its_unit_and_order(form):
    found = read(BOX_FORMS[form])
    half = 0.5 if form == "Florence-2" else 0  # the middle of a bin
    wanted = [(label, *(v + half * side / 1000 for v, side in zip(box, (800, 500, 800, 500), strict=True)))
              for label, *box in (CAT, DOG)]  # fmt: skip
    assert [one[0] for one in boxes(found)] == ["cat", "dog"] and not found.lines
    assert [one[1:] for one in boxes(found)] == [pytest.approx(one[1:]) for one in wanted]


@pytest.mark.parametrize("form", PIXEL_FORMS)
def test_numbers_are_read_as_a_person_says(form):
    found = read(PIXEL_FORMS[form], PIXELS)
    assert boxes(found) == [CAT, DOG] and not found.points and not found.lines


def test_location_tokens_of_paligemma():
    found = read("<loc0256><loc0512><loc0768><loc1024> cat ; <loc0000><loc0000><loc0512><loc0512> dog<loc0001>", PIXELS)
    assert boxes(found) == [("cat", 400, 125, 800, 375), ("dog", 0, 0, 400, 250)]
    assert "1 location token" in found.lines[0]


@pytest.mark.parametrize("form", POINT_FORMS)
def test_points_are_keypoints_and_no_boxes(form):
    text, coordinates = POINT_FORMS[form]
    found = read(text, coordinates)
    assert [one[1:] for one in points(found)] == [(200, 450)] and not found.boxes
    assert points(found)[0][0] in ("nose", "click", "")
    check_keypoints([found.keypoints])


def test_many_points_of_one_tag():
    found = read('<points x1="10" y1="20" x2="30" y2="40" x3="50" y3="60" alt="eggs">eggs</points>')
    assert points(found) == [("eggs", 80, 100), ("eggs", 240, 200), ("eggs", 400, 300)]
    assert points(read("(80,100),(240,200),(400,300)", PIXELS)) == [("", 80, 100), ("", 240, 200), ("", 400, 300)]


def test_forms_can_be_mixed():
    found = read(
        '<ref>cat</ref><box>[[100,200,500,600]]</box> then <point x="25" y="90" alt="nose"> '
        "and dog: [0.01, 0.02, 0.02, 0.04]"
    )
    assert boxes(found) == [CAT, DOG] and points(found) == [("nose", 200, 450)]
    assert found.summary() == "cat: 1, dog: 1, nose: 1 (0-1000, 0-100, 0-1)"


def test_scores_that_are_written_are_kept():
    found = read(
        '[{"bbox": [80,100,400,300], "label": "cat", "score": 0.75}, {"bbox": [8,10,16,20], "score": 7}]', PIXELS
    )
    assert boxes(found) == [(*CAT, 0.75), ("", *DOG[1:])]


# --- units and order ---


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("[0.1, 0.2, 0.5, 0.6]", "0-1"),
        ("[0, 0, 1, 1]", "0-1"),
        ("[80, 100, 400, 600]", "0-1000"),  # below the image
        ("[80, 100, 900, 300]", "0-1000"),  # beside it
        ('<points x1="25" y1="90">', "0-100"),
    ],
)
def test_auto_knows_what_the_numbers_can_only_be(text, unit):
    found = read(text)
    assert not found.lines and found.units == [unit] and found.boxes + found.points


def test_numbers_above_1000_are_pixels_of_a_large_image():
    assert boxes(read("[1200, 100, 1600, 300]", size=(1000, 2000))) == [("", 1200, 100, 1600, 300)]
    (line,) = read("[1200, 100, 1600, 300] [80, 100, 400, 300]").lines[:-1]
    assert line.startswith("undecided: numbers above 1000 and outside the 800 x 500 image")


def test_what_auto_cannot_decide_is_told():
    found = read("[80, 100, 400, 300]")
    assert found.units == ["0-1000"] and "undecided: the numbers can be 0-1000 or pixels" in found.summary()
    assert not read("[80, 100, 400, 300]", size=(1000, 1000)).lines  # both say the same
    for chosen in COORDINATES[1:]:
        assert not any("undecided" in line for line in read("[80, 100, 400, 300]", chosen).lines)


def test_an_answer_that_is_clear_decides_for_the_others():
    unclear, clear, large = "[80, 100, 400, 300]", "[80, 100, 900, 300]", "[80, 100, 1200, 300]"
    answers = [read_answer(text) for text in (unclear, clear)]
    first, second = locate(answers, [SIZE, SIZE], AUTO, AUTO)
    assert first.units == second.units == ["0-1000"] and first.lines == ["read as 0-1000, like the other answers"]
    first, _ = locate([answers[0], read_answer(large)], [SIZE, (1000, 2000)], AUTO, AUTO)
    assert first.units == ["pixels"]
    first, *_ = locate([*answers, read_answer(large)], [SIZE, SIZE, (1000, 2000)], AUTO, AUTO)
    assert first.lines[0].startswith("undecided")


def test_a_chosen_unit_and_order_hold_for_all_but_what_is_fixed():
    text = '<ref>a</ref><box>[[8, 10, 16, 20]]</box> {"box_2d": [10, 8, 20, 16]} cat<loc_0><loc_0><loc_500><loc_500>'
    found = read(text, PIXELS)
    assert [one[1:] for one in boxes(found)[:2]] == [DOG[1:], DOG[1:]]
    assert boxes(found)[2] == pytest.approx(("cat", 0.4, 0.25, 400.4, 250.25))
    assert boxes(read('{"bbox_2d": [10, 8, 20, 16], "label": "dog"}', PIXELS, "y first")) == [DOG]
    assert boxes(read('{"box_2d": [8, 10, 16, 20], "label": "dog"}', PIXELS, "x first")) == [DOG]
    assert boxes(read('{"x1": 8, "y1": 10, "x2": 16, "y2": 20, "label": "dog"}', PIXELS, "y first")) == [DOG]


# --- what is wrong ---


@pytest.mark.parametrize(
    ("text", "left", "said"),
    [
        ('[{"bbox_2d": [80,100,400,300], "label": "cat"}, {"bbox_2d": [8, 10, 1', [CAT], "it breaks off: [8, 10, 1"),
        ('[{"bbox_2d": [80,100,400,300], "label": "ca', [("", *CAT[1:])], None),
        ('[{"bbox_2d": [80,100,400,300], "label": "cat"} {"bbox_2d": [8,10,16], "label": "dog"}]', [CAT], "3 numbers"),
        ("<ref>cat</ref><box>[[100,200,500,600]]</box><ref>dog</ref><box>", None, "it breaks off"),
        ("<box>none</box>", [], "no numbers"),
        ("[8, 10, 1e300, 20]", [], "a number above"),
        ('<points x1="10" y1="20" x2="3', [], "a point without x or y"),
        ("<point>", [], "a point without numbers"),
        ("[400, 300, 80, 100]", [("", *CAT[1:])], "corners put in order: [400, 300, 80, 100]"),
        ("[-80, 100, 400, 300]", [("", 0, 100, 400, 300)], "cut to the image: [-80, 100, 400, 300]"),
        ("[80, 100, 80, 300]", [], "without an area: [80, 100, 80, 300]"),
        ("[900, 100, 950, 300]", [], "outside the image: [900, 100, 950, 300]"),
        ("(900, 100)", [], "outside the image"),
        ("[80, 100, 400, 300] [80, 100, 400, 300]", [("", *CAT[1:])], "left out: 1 repetitions"),
        ("<think>[1,2,30,40]</think>cat: [80, 100, 400, 300]", [CAT], "what the model thought"),
        ("I see neither a cat [1] nor a dog (see [a, b]).", [], "the text has no coordinates: I see neither"),
    ],
)
def test_what_can_be_read_is_returned_and_the_rest_is_told(text, left, said):
    found = read(text, PIXELS)
    if left is not None:
        assert boxes(found) == left and not found.points or said == "a point without x or y"
    assert said is None or said in found.summary()


def test_an_empty_answer_has_nothing_to_tell():
    assert read("").summary() == read(" \n").summary() == "no boxes or points"


def test_numbers_that_are_no_places_stay_out():
    text = (
        '{"image_size": [800, 500], "color": [255, 0, 0], "bbox_2d": [80,100,400,300], "label": "cat", "grid": [3, 4]}'
    )
    found = read(text, PIXELS)
    assert boxes(found) == [CAT] and not found.points and not found.lines


def test_a_sentence_before_a_list_is_no_name():
    text = 'Here is what I found, as you asked: [{"bbox": [8,10,16,20]}]\nThe bounding box: [80, 100, 400, 300]'
    assert [one[0] for one in boxes(read(text, PIXELS))] == ["", ""]


def test_a_report_is_short():
    found = read(" ".join(f"[{n}, 5, {n}, 9]" for n in range(300)), PIXELS)
    assert len(found.summary().splitlines()) == 22 and found.summary().endswith("and 280 more remarks")
    assert max(map(len, read("[" + "1, " * 5000 + "1]").summary().splitlines())) < 200


def test_no_more_places_are_read_than_the_limit():
    answer = read_answer("[" + ",".join(f"[{n},1,{n + 1},2]" for n in range(MAX_ANSWER_PLACES + 5)) + "]")
    assert len(answer.places) == MAX_ANSWER_PLACES and answer.problems == [
        f"only the first {MAX_ANSWER_PLACES} boxes and points are read"
    ]


def test_any_text_is_read_without_an_error():
    """Pieces of all forms, cut and joined at random."""
    pieces = [*BOX_FORMS.values(), *PIXEL_FORMS.values(), *(text for text, _ in POINT_FORMS.values())]
    pieces += [
        "[[[[",
        "{{",
        "\\",
        '"',
        "'",
        "<box>",
        "<ref>",
        "</think>",
        "NaN",
        "-",
        "1e999",
        "９",
        "\x00",
        "\ud7ff",
        "=",
        ":",
    ]
    choose = random.Random(18)
    for _ in range(400):
        parts = []
        for _ in range(choose.randint(1, 5)):
            piece = choose.choice(pieces)
            first = choose.randrange(len(piece))
            parts.append(piece[first : choose.randint(first, len(piece))] if choose.random() < 0.7 else piece)
        found = read("".join(parts), choose.choice(COORDINATES), choose.choice(ORDERS))
        for box in found.boxes:
            assert 0 <= box["x"] < 800 and 0 <= box["y"] < 500 and box["width"] > 0 and box["height"] > 0
            assert box["x"] + box["width"] <= 800 + 1e-6 and box["y"] + box["height"] <= 500 + 1e-6
        check_keypoints([found.keypoints])


def test_groups_can_be_nested_deeper_than_python_calls():
    for depth in (30, 100_000):
        assert boxes(read("[" * depth + "80, 100, 400, 300" + "]" * depth, PIXELS)) == [("", *CAT[1:])]


def test_reading_stops_when_stop_is_pressed(stop_soon):
    from comfy.model_management import InterruptProcessingException

    timer, _ = stop_soon
    timer.start()
    with pytest.raises(InterruptProcessingException):
        for _ in range(100):
            read_answer("[1," * 100_000)


# --- the record ---


def test_boxes_and_points_of_one_image_stand_in_one_document():
    found = read('cat: [80, 100, 400, 300] {"point_2d": [200, 450], "label": "nose"}', PIXELS)
    frame = frame_record(800, 500, found.boxes, keypoints=found.keypoints, text="the answer")
    document = read_document(write_document("read", "", [frame]))
    (loaded,) = document.bounding_boxes()
    assert boxes(ImagePlaces(SIZE, loaded)) == [CAT]
    (pose,) = document.keypoints()
    assert [one["label"] for one in pose["objects"]] == ["nose"] and document.masks() is None
    assert document.texts == ["the answer"]


def test_a_pose_with_a_box_is_still_a_box():
    """Only what is a single point has no box."""
    mask = torch.ones(1, 4, 4)
    point = {"name": "nose", "x": 2.0, "y": 2.0, "score": 1.0}
    objects = [
        {
            "label": "",
            "score": 1.0,
            "keypoints": [point] * count,
            "box": {"x": 2.0, "y": 2.0, "width": w, "height": 0.0},
        }
        for count, w in ((1, 0.0), (2, 0.0), (1, 1.0))
    ]
    pose = {"skeleton": [], "objects": objects}
    (found,) = read_document(write_document("pose", "", [frame_record(4, 4, keypoints=pose)])).bounding_boxes()
    assert [one["width"] for one in found] == [0.0, 1.0]
    (found,) = read_document(write_document("boxes", "", [frame_record(4, 4, found[:1], mask)])).bounding_boxes()
    assert len(found) == 1
