"""Text to Boxes and Points through the queue: texts of any model in, wires of the pack and of stock nodes out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mulan_nodes.tools.comfy_server import GraphFailed, GraphRejected

WIDTH, HEIGHT = 80, 50
ANSWER = (
    'Two animals: <ref>猫</ref><box>[[100, 200, 500, 600]]</box>, {"bbox_2d": [80, 100, 2000, 200], "label": "dog"} '
    'and <point x="25" y="90" alt="nose">nose</point>. Also [1, 2, 3].'
)
CAT, NOSE = {"x": 8.0, "y": 10.0, "width": 32.0, "height": 20.0, "label": "猫"}, [{"x": 20, "y": 45}]


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def reading(answer: str = ANSWER, count: int = 1, **more) -> dict:
    """A text (1), images (2) and the reader (3)."""
    return {
        "1": node("PrimitiveStringMultiline", value=answer),
        "2": node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=count, color=0),
        "3": node("VisionLLMTextToBoxes", **{"text": ["1", 0], "image": ["2", 0], "coordinates": "auto", **more}),
    }


def told(server, graph: dict, output: int) -> str:
    return server.run(graph | {"told": node("PreviewAny", source=["3", output])}).nodes["told"]["text"][0]


def seen(server, graph: dict, output: int) -> np.ndarray:
    """A mask as bool [B, H, W]."""
    drawn = {"8": node("MaskToImage", mask=["3", output]), "9": node("SaveImage", images=["8", 0], filename_prefix="m")}
    return np.stack(server.run(graph | drawn).images)[..., 0] > 127


def test_all_outputs_say_what_the_text_says(server):
    graph = reading()
    assert json.loads(told(server, graph, 0)) == [[CAT]]
    keypoints = json.loads(told(server, graph, 3))
    assert [one["label"] for one in keypoints[0]["objects"]] == ["nose"]
    assert json.loads(told(server, graph, 4)) == NOSE
    report = told(server, graph, 7)
    assert report.startswith("猫: 1, nose: 1") and "3 numbers" in report and "outside the image: dog" in report
    assert told(server, graph, 5) == "2"


def test_masks_are_the_boxes(server):
    graph = reading("<ref>a</ref><box>[[100,200,500,600],[0,0,100,100]]</box>")
    masks = seen(server, graph, 2)
    assert masks.shape == (2, HEIGHT, WIDTH)
    assert masks[0, 10:30, 8:40].all() and masks[0].sum() == 20 * 32 and masks[1].sum() == 5 * 8
    assert np.array_equal(seen(server, graph, 1)[0], masks.any(0))
    assert not seen(server, reading("nothing"), 2).any()


def test_the_document_is_what_load_detections_reads(server):
    graph = reading()
    document = told(server, graph, 6)
    loaded = {"3": node("VisionLLMLoadDetections", file="the text below", json=document)}
    assert json.loads(told(server, loaded, 0))[0][0] == CAT
    assert [one["label"] for one in json.loads(told(server, loaded, 3))[0]["objects"]] == ["nose"]
    assert told(server, loaded, 4) == ANSWER
    shown = server.run(graph).nodes["3"]
    assert shown["text"][0] == document and "猫: 1" in shown["mulan_text"][0]


def test_other_nodes_take_the_boxes_and_points(server):
    wired = {
        "4": node("VisionLLMFilterBoxes", bboxes=["3", 0], masks=["3", 2], names="猫", min_score=0.5, min_area=0,
                  max_area=0, top_k=0, in_region=0.5),
        "5": node("VisionLLMBoxesToSEGS", image=["2", 0], bboxes=["4", 0], masks=["4", 1], crop_factor=1.0),
        "6": node("VisionLLMKeypointsToRegions", keypoints=["3", 3], names="", threshold=0.0, margin=4, shape="points"),
        "7": node("VisionLLMSaveDetections", bboxes=["3", 0], image=["2", 0], filename_prefix="read"),
        "10": node("VisionLLMSaveDetections", keypoints=["3", 3], filename_prefix="read"),
        "11": node("PreviewAny", source=["6", 3]),
        "12": node("PreviewAny", source=["5", 0]),
    }  # fmt: skip
    outputs = server.run(reading("<ref>猫</ref><box>[[100, 200, 500, 600]]</box>" + ANSWER) | wired)
    assert json.loads(outputs.nodes["11"]["text"][0]) == NOSE and outputs.nodes["12"]["text"]


# --- lists and batches ---


def listed(*texts: str) -> dict:
    """A list of texts (1): one per text of a document about as many images."""
    frames = [{"width": 8, "height": 8, "text": text, "objects": []} for text in texts]
    document = json.dumps({"format": "visionllm-nodes/1", "task": "ask", "frames": frames})
    return {"1": node("VisionLLMLoadDetections", file="the text below", json=document)}


def test_a_text_per_image(server):
    graph = reading(count=2, text=["1", 4]) | listed("a: [100, 200, 500, 600]", "b: [0, 0, 100, 100] c: [0.5, 0.5]")
    first, second = json.loads(told(server, graph, 0))
    assert [one["label"] for one in first + second] == ["a", "b"]
    assert [frame["width"] for frame in json.loads(told(server, graph, 3))] == [WIDTH, WIDTH]
    assert told(server, graph, 7).splitlines()[0] == "image 0: a: 1 (0-1000)"


def test_several_texts_about_one_image_are_one(server):
    graph = reading(text=["1", 4]) | listed("a: [100, 200, 500, 600]", "b: [0, 0, 100, 100]")
    (boxes,) = json.loads(told(server, graph, 0))
    assert [one["label"] for one in boxes] == ["a", "b"]


def test_one_text_for_several_images_is_refused(server):
    with pytest.raises(GraphFailed, match=r"text: got 1 text for 3 images. Connect one text per image"):
        server.run(reading(count=3))


# --- what is wrong ---


@pytest.mark.parametrize(
    ("more", "message"),
    [({"coordinates": "inches"}, "coordinates"), ({"order": "z first"}, "order"), ({"image": None}, "image")],
)
def test_wrong_choices_are_refused_before_the_run(server, more, message):
    graph = reading(**more)
    graph["3"]["inputs"] = {name: value for name, value in graph["3"]["inputs"].items() if value is not None}
    with pytest.raises(GraphRejected, match=message):
        server.run(graph)


def test_a_text_without_places_gives_empty_outputs(server):
    graph = reading("I see no cat.")
    assert json.loads(told(server, graph, 0)) == [[]] and told(server, graph, 5) == "0"
    assert told(server, graph, 4) == "[]" and "the text has no coordinates: I see no cat." in told(server, graph, 7)
