"""Detections of broken clients, other packs and damaged files through the queue: a result, or a sentence."""

from __future__ import annotations

import json

import pytest

from mulan_nodes.tools.comfy_server import GraphFailed, GraphRejected

IMAGE, MASK, ONE_BOX = (
    "torch.rand(1, 48, 64, 3)",
    "torch.ones(1, 48, 64)",
    "[{'x': 4, 'y': 4, 'width': 20, 'height': 20}]",
)
POINTS = "[{'name': 'nose', 'x': 10, 'y': 12.0, 'score': 1}, {'name': 'neck', 'x': 14.0, 'y': 20.0, 'score': 1.0}]"
OBJECT = f"{{'label': 'person', 'score': .9, 'box': {ONE_BOX[1:-1]}, 'keypoints': {POINTS}}}"
KEYPOINTS = f"[{{'width': 64, 'height': 48, 'skeleton': [[0, 1]], 'objects': [{OBJECT}]}}]"
POSE = "[{'canvas_width': 64, 'canvas_height': 48, 'people': [{'pose_keypoints_2d': [5.0, 6.0, 1.0] * 18}]}]"
SETTINGS = {
    "VisionLLMBoxesToMask": {"margin": 0},
    "VisionLLMMaskToBoxes": {"masks_are": "one picture each", "separate": True, "min_area": 16, "label": ""},
    "VisionLLMBoxesToSEGS": {"crop_factor": 3.0},
    "VisionLLMFilterBoxes": {
        **{"names": "", "min_score": 0.0, "min_area": 0, "max_area": 0, "top_k": 0, "in_region": 0.5}
    },
    "VisionLLMPickBox": {"index": 0, "picture": 0, "margin": 0},
    "VisionLLMDrawDetections": {
        **{"names": True, "scores": True, "keypoint_names": True, "colours": "by name"},
        **{"mask_opacity": 0.4, "line_width": 0, "text_size": 0},
    },
    "VisionLLMKeypointsToRegions": {"names": "", "threshold": 0.0, "margin": 8, "shape": "hull"},
    "VisionLLMKeypointsToPose": {"threshold": 0.0},
    "VisionLLMPoseToKeypoints": {},
    "VisionLLMSaveDetections": {"filename_prefix": "outside"},
}
FILE = {"file": "the text below"}


def run(server, name: str, count: int, json_text: str | None = None, **values: str) -> dict[str, str]:
    """What a node's outputs are, by their number; values are Python expressions."""
    texts = {} if json_text is None else FILE | {"json": json_text}
    graph = {key: {"class_type": "FuzzValue", "inputs": {"expr": expr}} for key, expr in values.items()}
    inputs = SETTINGS.get(name, {}) | texts | {key: [key, 0] for key in values}
    graph["node"] = {"class_type": name, "inputs": inputs}
    graph["sink"] = {"class_type": "FuzzSink", "inputs": {f"value_{i}": ["node", i] for i in range(count)}}
    return json.loads(server.run(graph).nodes["sink"]["told"][0])


def refused(server, name: str, **values) -> str:
    with pytest.raises(GraphFailed) as failed:
        run(server, name, 1, **values)
    return failed.value.message


# --- records ---


@pytest.mark.parametrize(
    "name, values, words",
    [
        ("VisionLLMPickBox", {"bboxes": "[{'x': 10**400, 'y': 0, 'width': 1, 'height': 1}]"}, "'x' of bounding box 1"),
        ("VisionLLMFilterBoxes", {"bboxes": "[{'x': True, 'y': 0, 'width': 1, 'height': 1}]"}, "it is True"),
        ("VisionLLMFilterBoxes", {"bboxes": "'a'"}, "bboxes: bounding boxes must be one box"),
        ("VisionLLMDrawDetections", {"keypoints": KEYPOINTS.replace("'x': 10", "'x': 'a'")}, "[0].x must be a number"),
        (
            "VisionLLMDrawDetections",
            {"keypoints": KEYPOINTS.replace("[[0, 1]]", "[[0, 2]]")},
            "skeleton[0] must be two",
        ),
        ("VisionLLMKeypointsToPose", {"keypoints": "5"}, "keypoints: they must be a list with a dict"),
        ("VisionLLMKeypointsToRegions", {"keypoints": KEYPOINTS.replace("64", "64.5")}, "it is 64.5"),
        ("VisionLLMKeypointsToRegions", {"keypoints": KEYPOINTS.replace("64", "10**9")}, "at most 134217728"),
        ("VisionLLMSaveDetections", {"keypoints": KEYPOINTS.replace("12.0", "nan")}, "is not a finite number: nan"),
        ("VisionLLMPoseToKeypoints", {"pose": POSE.replace("64", "'x'")}, '"canvas_width" of image 1'),
        ("VisionLLMPoseToKeypoints", {"pose": POSE.replace("6.0", "None")}, "must be a number; it is nothing"),
    ],
)
def test_a_wrong_record_is_refused_with_its_place(server, name, values, words):
    message = refused(server, name, **values)
    assert words in message and message.startswith(next(iter(values)))


@pytest.mark.parametrize(
    "name, count, values",
    [
        (
            "VisionLLMPickBox",
            7,
            {"bboxes": "[{'x': np.float32(1), 'y': torch.tensor(2), 'width': 1e308, 'height': 1e308}]"},
        ),
        ("VisionLLMDrawDetections", 1, {"image": IMAGE, "bboxes": ONE_BOX.replace("20", "1e308")}),
        ("VisionLLMDrawDetections", 1, {"keypoints": KEYPOINTS.replace("'person'", "None").replace("64", "64.0")}),
        ("VisionLLMDrawDetections", 1, {"keypoints": KEYPOINTS.replace("nose", "a\\u2029b\\u0085\\ud83d")}),
        ("VisionLLMBoxesToMask", 2, {"image": IMAGE, "bboxes": ONE_BOX.replace("20", "1e308")}),
        ("VisionLLMKeypointsToRegions", 4, {"keypoints": "[]"}),
        ("VisionLLMSaveDetections", 2, {"keypoints": KEYPOINTS.replace("'label': 'person', ", "")}),
        ("VisionLLMPoseToKeypoints", 1, {"pose": POSE[1:-1]}),
        ("VisionLLMPoseToKeypoints", 1, {"pose": POSE.replace("* 18}]", "* 18, 'scores': [1]}], 'animals': None")}),
        ("VisionLLMPoseToKeypoints", 1, {"pose": POSE.replace("[5.0, 6.0, 1.0] * 18", "torch.ones(18, 3)")}),
    ],
)
def test_an_odd_record_is_used(server, name, count, values):
    assert len(run(server, name, count, **values)) == count


# --- masks of other packs ---

FORMS = ("torch.ones(48, 64)", "torch.ones(1, 1, 48, 64)", "torch.ones(1, 48, 64).bool()", "torch.ones(1, 33, 70)")


@pytest.mark.parametrize("mask", FORMS)
def test_any_form_of_mask_is_used(server, mask):
    """As torch.ones in the image's size: what the nodes give for it."""
    for each in (MASK, mask):
        boxes = {"image": IMAGE, "bboxes": ONE_BOX, "masks": each}
        drawn = run(server, "VisionLLMDrawDetections", 1, **boxes)
        segs = run(server, "VisionLLMBoxesToSEGS", 1, **boxes)
        saved = run(server, "VisionLLMSaveDetections", 1, **boxes)
        found = run(server, "VisionLLMMaskToBoxes", 1, mask=each)
        if each == MASK:
            right = drawn, segs, saved, found
    assert (drawn, segs, saved) == right[:3] and (found == right[3] or "33" in mask)


def test_no_boxes_and_no_masks(server):
    for masks in ("torch.zeros(0, 48, 64)", "torch.zeros(1, 64, 64)"):
        for name in ("VisionLLMDrawDetections", "VisionLLMBoxesToSEGS", "VisionLLMSaveDetections"):
            run(server, name, 1, image=IMAGE, bboxes="[]", masks=masks)
        assert "[1, " in run(server, "VisionLLMFilterBoxes", 3, bboxes="[]", masks=masks)["value_1"]
        run(server, "VisionLLMDrawDetections", 1, masks=masks)
    run(server, "VisionLLMMaskToBoxes", 1, mask="torch.zeros(0, 48, 64)")


# --- documents ---


def document(width: int, height: int, objects: int = 1, **more) -> str:
    frame = {"width": width, "height": height, "objects": [{"box": [0, 0, 1, 1], **more}] * objects}
    return json.dumps({"format": "visionllm-nodes/1", "frames": [frame]})


@pytest.mark.parametrize(
    "text, words",
    [
        (document(30_000, 30_000, mask={"size": [30_000, 30_000], "counts": [900_000_000]}), "at most 134217728"),
        (document(64, 48, label=3), "label of this document must be a string; it is 3"),
        (document(64, 48).replace("[0, 0, 1, 1]", f"[{'9' * 400}, 0, 1, 1]"), "is not a finite number"),
        (document(64, 48).replace("[0, 0, 1, 1]", "[NaN, 0, 1, 1]"), "is not a finite number"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_loading_refuses_is_not_saved(server, text, words):
    with pytest.raises(GraphRejected, match=words):
        run(server, "VisionLLMLoadDetections", 1, json_text=text)
    assert words in refused(server, "VisionLLMSaveDetections", json=repr(text))


def test_boxes_of_a_document_load_where_their_masks_would_be_too_many(server):
    text = document(8192, 8192, 30)
    assert run(server, "VisionLLMLoadDetections", 1, json_text=text)["value_0"].startswith("1 [1 [30 [")
    with pytest.raises(GraphFailed, match="31 masks of 8192 x 8192 pixels would have .* and at most"):
        run(server, "VisionLLMLoadDetections", 3, json_text=text)


def test_masks_are_refused_before_they_are_made(server):
    image, many = "torch.zeros(1, 1, 1, 3).expand(1, 4096, 4096, 3)", f"{ONE_BOX} * 3000"
    assert "3001 masks of 4096 x 4096" in refused(server, "VisionLLMBoxesToMask", image=image, bboxes=many)
    assert "64 crops" not in run(server, "VisionLLMBoxesToSEGS", 1, image=image, bboxes=many)["value_0"]
    wide = f"[{{**{ONE_BOX[1:-1]}, 'width': 4096, 'height': 4096}}] * 3000"
    assert "3000 crops" in refused(server, "VisionLLMBoxesToSEGS", image=image, bboxes=wide)
