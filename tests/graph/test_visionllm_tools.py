"""The box, keypoint, drawing and file nodes through the queue, wired to stock nodes in both directions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mulan_nodes.tools.comfy_server import GraphFailed, GraphRejected
from mulan_nodes.visionllm_nodes.detections.names import split_names
from mulan_nodes.visionllm_nodes.detections.skeletons_of_animals import AP_10K

WIDTH, HEIGHT = 96, 64
BODY = (
    "nose",
    "left eye",
    "right eye",
    "left shoulder",
    "right shoulder",
    "left elbow",
    "right elbow",
    "left wrist",
    "right wrist",
    "left hip",
    "right hip",
)
PLACES = ((48, 10), (51, 8), (45, 8), (60, 20), (36, 20), (68, 32), (28, 32), (74, 44), (22, 44), (56, 46), (40, 46))
RUNS = [8, 2, WIDTH * HEIGHT - 10]  # rows 8 and 9 of the first column


def thing(x, y, width, height, label="", score=1.0, **more) -> dict:
    return {"label": label, "score": score, "box": [x, y, width, height], **more}


def written(*frames: list[dict], size=(WIDTH, HEIGHT), **more) -> str:
    pictures = [{"width": size[0], "height": size[1], "objects": objects, **more} for objects in frames]
    return json.dumps({"format": "visionllm-nodes/1", "task": "test", "prompt": "", "frames": pictures})


ANIMALS = [thing(10, 10, 30, 20, "犬", 0.9), thing(50.4, 20.6, 20, 30, "cat", 0.6), thing(60, 5, 8, 8, "cat", 0.3)]
PERSON = [
    thing(
        20,
        5,
        60,
        50,
        "人",
        0.8,
        keypoints=[{"name": name, "x": x, "y": y, "score": 1.0} for name, (x, y) in zip(BODY, PLACES, strict=True)],
    )
]


@pytest.fixture(scope="session")
def pictures(server) -> list[str]:
    """Files in the server's input folder: two pictures of noise."""
    names = []
    for seed in (1, 2):
        pixels = np.random.default_rng(seed).integers(60, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(server.folder / "input" / f"noise_{seed}.png")
        names.append(f"noise_{seed}.png")
    return names


@pytest.fixture
def start(pictures) -> dict:
    """A picture (1), two as a batch (2), and boxes of one picture (3) and of two (4)."""
    return {
        "1": node("LoadImage", image=pictures[0]),
        "1b": node("LoadImage", image=pictures[1]),
        "2": node("ImageBatch", image1=["1", 0], image2=["1b", 0]),
        "3": load(written(ANIMALS)),
        "4": load(written(ANIMALS, ANIMALS[1:2])),
    }


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def load(text: str) -> dict:
    return node("VisionLLMLoadDetections", file="the text below", json=text)


FILTER = {"names": "", "min_score": 0.0, "min_area": 0, "max_area": 0, "top_k": 0, "in_region": 0.5}
DRAW = {
    "names": True,
    "scores": True,
    "keypoint_names": False,
    "colours": "by name",
    "mask_opacity": 0.4,
    "line_width": 0,
    "text_size": 0,
}
PICK = {"index": 0, "picture": 0, "margin": 0}


def told(server, graph: dict, source: list) -> str:
    """What a graph's output is, as Preview Any shows it."""
    return server.run(graph | {"told": node("PreviewAny", source=source)}).nodes["told"]["text"][0]


def value(server, graph: dict, source: list):
    return json.loads(told(server, graph, source))


def seen(server, graph: dict, source: list) -> np.ndarray:
    """An IMAGE, uint8 [B, H, W, 3]."""
    return np.stack(server.run(graph | {"seen": node("SaveImage", images=source, filename_prefix="seen")}).images)


def mask(server, graph: dict, source: list) -> np.ndarray:
    """A MASK, bool [B, H, W]."""
    return seen(server, graph | {"as image": node("MaskToImage", mask=source)}, ["as image", 0])[..., 0] > 127


def failure(server, graph: dict, source: list) -> str:
    with pytest.raises(GraphFailed) as failed:
        told(server, graph, source)
    return failed.value.message


# --- boxes of other nodes in, ours out ---


def test_boxes_of_stock_nodes_are_read(server, start):
    """A single box, and what people draw in Create Bounding Boxes."""
    one = start | {
        "5": node("PrimitiveBoundingBox", x=4, y=5, width=20, height=10),
        "6": node("VisionLLMFilterBoxes", bboxes=["5", 0], **FILTER),
    }
    assert value(server, one, ["6", 0]) == [[{"x": 4.0, "y": 5.0, "width": 20.0, "height": 10.0}]]
    state = [
        {"x": 24, "y": 32, "width": 24, "height": 16, "metadata": {"desc": "cat"}},
        {"x": 0, "y": 0, "width": 96, "height": 6},
    ]
    canvas = {
        "5": node("CreateBoundingBoxes", width=96, height=64, editor_state={"__value__": state}, background=["1", 0]),
        "6": node("VisionLLMBoxesToMask", image=["2", 0], bboxes=["5", 1], margin=0),
    }
    filled = mask(server, start | canvas, ["6", 0])
    assert filled.shape == (2, HEIGHT, WIDTH) and np.array_equal(filled[0], filled[1])
    assert filled[0, 32:48, 24:48].all() and filled[0, :6].all() and filled[0].sum() == 16 * 24 + 6 * 96


def test_boxes_written_into_a_graph_by_hand(server):
    boxes = {"__value__": [{"x": 1, "y": 2, "width": 3, "height": 4, "label": "犬"}]}
    assert value(server, {"6": node("VisionLLMFilterBoxes", bboxes=boxes, **FILTER)}, ["6", 0])[0][0]["label"] == "犬"
    wrong = {"6": node("VisionLLMFilterBoxes", bboxes={"__value__": [{"x": 1, "y": 2, "width": 3}]}, **FILTER)}
    assert "bounding box 1 has no 'height'; it has 'x', 'y', 'width'" in failure(server, wrong, ["6", 0])


def test_stock_nodes_read_our_boxes(server, start):
    before = seen(server, start, ["2", 0])
    drawn = seen(server, start | {"5": node("DrawBBoxes", image=["2", 0], bboxes=["4", 0])}, ["5", 0])
    assert drawn.shape == before.shape and (drawn[1, 21:50, 50] != before[1, 21:50, 50]).any()
    assert np.array_equal(drawn[1, :15, :10], before[1, :15, :10])
    crop = {"output_width": 64, "output_height": 64, "padding": 0, "keep_aspect": "stretch"}
    cropped = seen(server, start | {"5": node("CropByBBoxes", image=["2", 0], bboxes=["4", 0], **crop)}, ["5", 0])
    assert cropped.shape == (2, 64, 64, 3)
    nothing = start | {
        "5": load(written([], [])),
        "6": node("DrawBBoxes", image=["2", 0], bboxes=["5", 0]),
        "7": node("CropByBBoxes", image=["6", 0], bboxes=["5", 0], **crop),
    }
    assert np.array_equal(seen(server, nothing, ["7", 0]), before)


def test_filters(server, start):
    def left(source="3", **settings):
        frames = value(
            server, start | {"5": node("VisionLLMFilterBoxes", bboxes=[source, 0], **FILTER | settings)}, ["5", 0]
        )
        return [[(box["label"], box["score"]) for box in boxes] for boxes in frames]

    assert left() == [[("犬", 0.9), ("cat", 0.6), ("cat", 0.3)]]
    assert left(names="CAT") == [[("cat", 0.6), ("cat", 0.3)]] and left(names="犬，bird") == [[("犬", 0.9)]]
    assert left(min_score=0.5) == left(top_k=2) == left(min_area=100) == [[("犬", 0.9), ("cat", 0.6)]]
    assert left(max_area=64) == [[("cat", 0.3)]] and left("4", top_k=1) == [[("犬", 0.9)], [("cat", 0.6)]]
    start["6"] = node("SolidMask", value=1.0, width=WIDTH, height=HEIGHT)
    start["7"] = node("SolidMask", value=1.0, width=48, height=HEIGHT)
    start["8"] = node("MaskComposite", destination=["6", 0], source=["7", 0], x=0, y=0, operation="subtract")
    assert left(region=["8", 0]) == [[("cat", 0.6), ("cat", 0.3)]] and left(region=["7", 0]) == [[("犬", 0.9)]]


def test_masks_go_along_with_the_boxes(server, start):
    kept = start | {
        "5": node(
            "VisionLLMFilterBoxes", bboxes=["4", 0], masks=["4", 2], **FILTER | {"names": "cat", "min_score": 0.5}
        )
    }
    each = mask(server, kept, ["5", 1])
    assert each.shape == (2, HEIGHT, WIDTH) and each[0, 21:50, 51:70].all() and np.array_equal(each[0], each[1])
    assert value(server, kept, ["5", 2]) == 2
    none = start | {"5": node("VisionLLMFilterBoxes", bboxes=["4", 0], masks=["4", 2], **FILTER | {"names": "bird"})}
    assert mask(server, none, ["5", 1]).shape == (1, HEIGHT, WIDTH) and not mask(server, none, ["5", 1]).any()
    wrong = start | {"5": node("VisionLLMFilterBoxes", bboxes=["4", 0], masks=["3", 1], **FILTER)}
    assert "1 masks for 4 boxes" in failure(server, wrong, ["5", 0])
    without = start | {"5": node("VisionLLMFilterBoxes", bboxes=["4", 0], **FILTER)}
    assert "Connect the boxes' masks" in failure(server, without, ["5", 1]) and value(server, without, ["5", 2]) == 4


def test_one_box_for_the_stock_crop(server, start):
    before = seen(server, start, ["1", 0])[0]
    picked = start | {
        "5": node("VisionLLMPickBox", bboxes=["3", 0], **PICK | {"index": 1}),
        "6": node("ImageCropV2", image=["1", 0], crop_region=["5", 0]),
    }
    outputs = server.run(picked | {"7": node("SaveImage", images=["6", 0], filename_prefix="crop")})
    assert np.array_equal(decoded(outputs, "7"), before[20:51, 50:71])
    assert [told(server, picked, ["5", output]) for output in range(1, 7)] == ["50", "20", "21", "31", "cat", "0.6"]
    grown = start | {
        "5": node("VisionLLMPickBox", bboxes=["4", 0], image=["2", 0], **PICK | {"picture": 1, "margin": 40})
    }
    assert value(server, grown, ["5", 0]) == {"x": 10, "y": 0, "width": 86, "height": 64, "label": "cat", "score": 0.6}
    missing = start | {"5": node("VisionLLMPickBox", bboxes=["3", 0], **PICK | {"index": 3})}
    assert "there is no box 3: image 0 has 3 boxes, counted from 0" in failure(server, missing, ["5", 0])


def decoded(outputs, node_id: str) -> np.ndarray:
    from mulan_nodes.tools.comfy_server import decode

    return decode(outputs.files[node_id][0])


def test_boxes_and_masks_there_and_back(server, start):
    there = start | {
        "5": node("VisionLLMBoxesToMask", image=["1", 0], bboxes=["3", 0], margin=0),
        "6": node(
            "VisionLLMMaskToBoxes",
            mask=["5", 1],
            masks_are="objects of one picture",
            separate=False,
            min_area=1,
            label="thing",
        ),
    }
    (boxes,) = value(server, there, ["6", 0])
    assert [(box["x"], box["y"], box["width"], box["height"], box["label"]) for box in boxes] == [
        (10, 10, 30, 20, "thing"),
        (50, 20, 21, 31, "thing"),
        (60, 5, 8, 8, "thing"),
    ]
    there["6"]["inputs"] |= {"mask": ["5", 0], "masks_are": "one picture each", "separate": True, "min_area": 100}
    assert [len(boxes) for boxes in value(server, there, ["6", 0])] == [2]


# --- masks to the stock nodes that inpaint and compose ---


def test_stock_nodes_use_our_masks(server, start):
    graph = start | {
        "5": node("VisionLLMBoxesToMask", image=["1", 0], bboxes=["3", 0], margin=2),
        "6": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "7": node("VAEEncodeForInpaint", pixels=["1", 0], vae=["6", 2], mask=["5", 0], grow_mask_by=2),
        "8": node("SetLatentNoiseMask", samples=["7", 0], mask=["5", 0]),
        "9": node("CLIPTextEncode", clip=["6", 1], text="a star"),
        "10": node("ConditioningSetMask", conditioning=["9", 0], mask=["5", 0], strength=1.0, set_cond_area="default"),
        "11": node(
            "KSampler",
            model=["6", 0],
            positive=["10", 0],
            negative=["9", 0],
            latent_image=["8", 0],
            seed=1,
            steps=1,
            cfg=1.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "12": node("VAEDecode", samples=["11", 0], vae=["6", 2]),
    }
    assert seen(server, graph, ["12", 0]).shape == (1, HEIGHT, WIDTH, 3)
    composed = start | {
        "5": node("VisionLLMBoxesToMask", image=["1", 0], bboxes=["3", 0], margin=0),
        "6": node("SolidMask", value=1.0, width=WIDTH, height=HEIGHT),
        "7": node("MaskComposite", destination=["6", 0], source=["5", 0], x=0, y=0, operation="subtract"),
    }
    left = mask(server, composed, ["7", 0])[0]
    assert not left[10:30, 10:40].any() and left[40:, :40].all()


def test_segs_have_impact_s_form(server, start):
    graph = start | {
        "5": node("VisionLLMBoxesToSEGS", image=["2", 0], bboxes=["4", 0], masks=["4", 2], crop_factor=2.0)
    }
    shown = server.run(graph | {"told": node("PreviewAny", source=["5", 0])}).nodes["told"]["text"]
    assert len(shown) == 2  # a list: what follows runs once for each picture
    assert (
        shown[0].startswith(f"(({HEIGHT}, {WIDTH}), [SEG(cropped_image=tensor(")
        and shown[0].count("SEG(") == 3
        and shown[1].count("SEG(") == 1
    )
    assert "crop_region=[40, 2, 82, 64]" in shown[1]
    assert "bbox=[50, 20, 71, 51], label='cat', control_net_wrapper=None" in shown[1]


def test_older_nodes_get_corners_and_centers(server, start):
    """The `bboxes` and `coordinates_positive` of SAM2 nodes: lists of numbers, once for each image."""
    graph = start | {"5": node("VisionLLMBoxesToBBOX", bboxes=["4", 0])}
    boxes = value(server, graph, ["4", 0])
    for output, form in (
        (0, lambda x, y, width, height: [x, y, x + width, y + height]),
        (1, lambda x, y, width, height: {"x": round(x + width / 2), "y": round(y + height / 2)}),
    ):
        texts = server.run(graph | {"told": node("PreviewAny", source=["5", output])}).nodes["told"]["text"]
        assert [json.loads(text) for text in texts] == [
            [form(*(box[side] for side in ("x", "y", "width", "height"))) for box in frame] for frame in boxes
        ]
    graph["5"]["inputs"]["bboxes"] = ["empty", 0]
    assert value(server, graph | {"empty": load(written([]))}, ["5", 0]) == []


# --- keypoints ---


def test_labels_and_scores_of_animals_survive_the_pose(server):
    """The animals between people, in two frames, each with its own label and scores, and with a point not found."""
    points = [
        {
            "name": name,
            "x": 5 + 4 * index,
            "y": 9 + 2 * index,
            "score": 0.0 if index == 2 else round(0.3 + index / 30, 2),
        }
        for index, name in enumerate(AP_10K.keypoints)
    ]
    animals = [
        thing(5, 9, 64, 32, label, score, keypoints=points[skipped:])
        for label, score, skipped in (("马", 0.61, 0), ("cat", 0.42, 0), ("fox", 0.17, 4))
    ]
    graph = {
        "3": load(written([animals[0], *PERSON, animals[1]], [animals[2]])),
        "5": node("VisionLLMKeypointsToPose", keypoints=["3", 3], threshold=0.0),
        "6": node("VisionLLMPoseToKeypoints", pose=["5", 0]),
    }

    def told_of(source) -> list[dict]:
        return [
            {
                found["label"]: (
                    found["score"],
                    {
                        point["name"]: (point["x"], point["y"], point["score"])
                        for point in found["keypoints"]
                        if point["score"] > 0 and point["name"] != "neck"
                    },
                )
                for found in frame["objects"]
            }
            for frame in value(server, graph, source)
        ]

    before, after = told_of(["3", 3]), told_of(["6", 0])
    assert before == after and [[*frame] for frame in before] == [["马", "人", "cat"], ["fox"]]


def test_stock_nodes_draw_our_poses(server):
    sd = {
        "draw_body": True,
        "draw_hands": True,
        "draw_face": True,
        "draw_feet": True,
        "stick_width": 3,
        "face_point_size": 3,
        "score_threshold": 0.3,
        "draw_head": True,
    }
    graph = {
        "3": load(written(PERSON, [])),
        "5": node("VisionLLMKeypointsToPose", keypoints=["3", 3], threshold=0.0),
        "6": node("SDPoseDrawKeypoints", keypoints=["5", 0], **sd),
    }
    drawn = seen(server, graph, ["6", 0])
    assert drawn.shape == (2, HEIGHT, WIDTH, 3) and not drawn[1].any()
    assert all(drawn[0, y, x].any() for x, y in PLACES) and not drawn[0, 55:, :20].any()
    faces = graph | {"7": node("SDPoseFaceBBoxes", keypoints=["5", 0], scale=1.5, force_square=True)}
    assert len(value(server, faces, ["7", 0])) == 2
    back = graph | {
        "7": node("VisionLLMPoseToKeypoints", pose=["5", 0]),
        "8": node("VisionLLMKeypointsToPose", keypoints=["7", 0], threshold=0.0),
    }
    people, again = (
        value(server, back, source)[0]["people"][0]["pose_keypoints_2d"] for source in (["5", 0], ["8", 0])
    )
    assert people == again


def test_regions_of_keypoints(server):
    region = {"names": "nose, left eye", "threshold": 0.0, "margin": 2, "shape": "hull"}
    graph = {"3": load(written(PERSON, [])), "5": node("VisionLLMKeypointsToRegions", keypoints=["3", 3], **region)}
    assert value(server, graph, ["5", 0])[0][0] == {
        "x": 46.0,
        "y": 6.0,
        "width": 7.0,
        "height": 6.0,
        "label": "人",
        "score": 0.8,
    }
    assert mask(server, graph, ["5", 1]).shape == (2, HEIGHT, WIDTH) and mask(server, graph, ["5", 2])[0, 10, 48]
    points = server.run(graph | {"told": node("PreviewAny", source=["5", 3])}).nodes["told"]["text"]
    assert [json.loads(text) for text in points] == [[{"x": 48, "y": 10}, {"x": 51, "y": 8}], []]
    graph["5"]["inputs"]["names"] = "beak"
    assert "no keypoint is named 'beak'; the names are nose" in failure(server, graph, ["5", 0])


def test_sam3_takes_our_boxes_and_points(server):
    """Its weights are not here: its schema tells that it takes these very types."""
    takes = server.object_info("SAM3_Detect")["input"]
    takes = {**takes["required"], **takes["optional"]}
    assert takes["bboxes"][0] == "BOUNDING_BOX" and takes["positive_coords"][0] == "STRING"


# --- drawing ---


def test_drawing_on_pictures_and_on_black(server, start):
    before = seen(server, start, ["2", 0])
    drawn = seen(
        server,
        start | {"5": node("VisionLLMDrawDetections", image=["2", 0], bboxes=["4", 0], masks=["4", 2], **DRAW)},
        ["5", 0],
    )
    assert drawn.shape == before.shape and (drawn[0, 12:28, 12:38] != before[0, 12:28, 12:38]).mean() > 0.9
    assert np.array_equal(drawn[1, 54:, :40], before[1, 54:, :40])
    black = {
        "3": load(written(PERSON, skeleton=[[3, 5], [5, 7]])),
        "5": node("VisionLLMDrawDetections", keypoints=["3", 3], **DRAW),
    }
    bones = seen(server, black, ["5", 0])
    assert bones.shape == (1, HEIGHT, WIDTH, 3) and bones[0, 26, 64].any() and not bones[0, 60:, :].any()
    alone = start | {"5": node("VisionLLMDrawDetections", bboxes=["3", 0], **DRAW)}
    assert "Connect images, masks or keypoints" in failure(server, alone, ["5", 0])
    other = start | {
        "5": load(written(PERSON, size=(40, 40))),
        "6": node("VisionLLMDrawDetections", image=["1", 0], keypoints=["5", 3], **DRAW),
    }
    assert "they belong to images of 40 x 40 pixels, but the images have 96 x 64" in failure(server, other, ["6", 0])


# --- files ---


def test_saved_and_loaded_again(server, start):
    kept = start | {
        "5": node("VisionLLMSaveDetections", image=["2", 0], bboxes=["4", 0], masks=["4", 2], filename_prefix="sub/two")
    }
    outputs = server.run(kept | {"6": node("PreviewAny", source=["5", 1])})
    name, text = outputs.nodes["6"]["text"][0], outputs.nodes["5"]["text"][0]
    assert name == "detections/sub/two_00001_.json [output]"
    assert (server.folder / "output" / "detections" / "sub" / "two_00001_.json").read_text("utf-8") == text + "\n"
    assert name in server.object_info("VisionLLMLoadDetections")["input"]["required"]["file"][1]["options"]
    again = {"7": node("VisionLLMLoadDetections", file=name, json="")}
    assert value(server, again, ["7", 0]) == value(server, start, ["4", 0])
    assert np.array_equal(mask(server, again, ["7", 2]), mask(server, start, ["4", 2]))
    assert np.array_equal(mask(server, again, ["7", 1]), mask(server, start, ["4", 1]))
    copied = start | {
        "5": node("VisionLLMSaveDetections", json=["6", 0], filename_prefix="copied"),
        "6": node("PreviewAny", source=["9", 0]),
        "9": node("PrimitiveStringMultiline", value=text),
    }
    assert server.run(copied).nodes["5"]["text"] == [text]
    with pytest.raises(GraphFailed, match="Connect either json or those"):
        server.run(copied | {"8": node("VisionLLMSaveDetections", json=["6", 0], bboxes=["3", 0], filename_prefix="x")})
    with pytest.raises(GraphFailed, match="image: not connected"):
        server.run(start | {"8": node("VisionLLMSaveDetections", bboxes=["3", 0], filename_prefix="x")})
    with pytest.raises(GraphFailed):
        server.run(
            start
            | {"8": node("VisionLLMSaveDetections", image=["1", 0], bboxes=["3", 0], filename_prefix="../outside")}
        )
    assert not list((server.folder / "output").glob("outside*"))


def test_a_changed_file_is_read_again(server):
    folder = server.folder / "output" / "detections"
    folder.mkdir(parents=True, exist_ok=True)
    graph = {"7": node("VisionLLMLoadDetections", file="detections/changing.json [output]", json="")}
    for label in ("first", "second"):
        (folder / "changing.json").write_text(written([thing(1, 1, 5, 5, label)]), "utf-8")
        assert value(server, graph, ["7", 0])[0][0]["label"] == label


def test_a_text_of_another_node_is_read(server):
    graph = {
        "6": node("PrimitiveStringMultiline", value=written(ANIMALS)),
        "7": node("VisionLLMLoadDetections", file="the text below", json=["6", 0]),
    }
    assert [box["label"] for box in value(server, graph, ["7", 0])[0]] == ["犬", "cat", "cat"]
    graph["6"]["inputs"]["value"] = "[]"
    assert 'json: this JSON is not a document of detections: it must be an object with "format"' in failure(
        server, graph, ["7", 0]
    )


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"file": "the text below", "json": "{"}, "json: this is not valid JSON"),
        (
            {"file": "the text below", "json": written([thing(0, 0, -1, 1)])},
            "json: frames[0].objects[0].box.width of this document must be 0 or above",
        ),
        ({"file": "gone.json", "json": ""}, "file: 'gone.json' is neither in"),
        ({"file": "../secret.json", "json": ""}, "file: '../secret.json' is neither in"),
    ],
)
def test_damaged_files_are_rejected_before_anything_runs(server, inputs, words):
    with pytest.raises(GraphRejected) as refused:
        server.run({"7": node("VisionLLMLoadDetections", **inputs), "8": node("PreviewAny", source=["7", 0])})
    assert words in refused.value.node_errors["7"]["errors"][0]["details"]


def test_boxes_are_filled_where_a_file_has_not_every_mask(server):
    frames = written([thing(0, 0, 4, 4, mask={"size": [HEIGHT, WIDTH], "counts": RUNS}), thing(8, 8, 4, 4)])
    each = mask(server, {"7": load(frames)}, ["7", 2])
    assert each.sum((1, 2)).tolist() == [16, 16]
    whole = written([thing(0, 0, 4, 4, mask={"size": [HEIGHT, WIDTH], "counts": RUNS})])
    assert torch.from_numpy(mask(server, {"7": load(whole)}, ["7", 2])).nonzero().tolist() == [[0, 8, 0], [0, 9, 0]]


def test_tracks_have_a_name_in_every_frame(server):
    """Boxes of four frames, one of them missed: names, the missed box, masks for SAM3's tracker, what is drawn."""
    boxes = [[{"x": 4 * time, "y": 5, "width": 20, "height": 10, "label": "犬"}] for time in range(4)]
    boxes[2] = []
    boxes[0].append({"x": 60, "y": 30, "width": 20, "height": 20, "label": "cat", "score": 0.5})
    track = dict(min_overlap=0.2, max_gap=15, min_length=1, fill=True, smooth=0.0)
    graph = {
        "2": node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=4, color=0),
        "5": node("VisionLLMTrackDetections", image=["2", 0], bboxes={"__value__": boxes}, **track),
    }
    named = value(server, graph, ["5", 0])
    assert [[one["label"] for one in of_frame] for of_frame in named] == [
        ["犬 1", "cat 1"],
        ["犬 1"],
        ["犬 1"],
        ["犬 1"],
    ]
    assert named[2][0]["x"] == 8
    first = mask(server, graph, ["5", 4])
    assert first.shape == (2, HEIGHT, WIDTH) and first[0, 5:15, :20].all() and first[0].sum() == 200
    assert "masks: not connected" in failure(server, graph, ["5", 1])
    drawn = node(
        "VisionLLMDrawDetections",
        image=["2", 0],
        bboxes=["5", 0],
        names=True,
        scores=True,
        keypoint_names=False,
        colours="by name",
        mask_opacity=0.4,
        line_width=0,
        text_size=0,
    )
    assert seen(server, graph | {"6": drawn}, ["6", 0]).any(axis=(1, 2, 3)).all()
    told = server.run(graph).nodes["5"]
    assert told["mulan_text"][0] == "犬 1: frames 0 to 3\ncat 1: frames 0 to 0"
    both = graph["5"]["inputs"] | {"keypoints": ["7", 3]}
    loaded = node("VisionLLMLoadDetections", file="the text below", json=told["text"][0])
    wrong = graph | {"5": node("VisionLLMTrackDetections", **both), "7": loaded}
    assert "bboxes, keypoints: connect exactly one of them" in failure(server, wrong, ["5", 0])


@pytest.mark.parametrize(
    ("choice", "count", "first", "last"),
    [
        ("COCO-80", 80, "person", "toothbrush"),
        ("ADE20K-150", 150, "wall", "flag"),
        ("LVIS-1203", 1203, "aerosol can", "zucchini"),
        ("LVIS, the 405 frequent", 405, "air conditioner", "zebra"),
        ("LVIS, the 461 common", 461, "aerosol can", "zucchini"),
        ("LVIS, the 337 rare", 337, "applesauce", "wolf"),
    ],
)
def test_class_names_are_names_for_other_nodes(server, choice, count, first, last):
    """What a node writes is read by another, as many names as it has."""
    graph = {"3": node("VisionLLMClassNames", list=choice)}
    names = told(server, graph, ["3", 0]).splitlines()
    assert [told(server, graph, ["3", 1]), len({*names}), names[0], names[-1]] == [str(count), count, first, last]
    assert split_names("\n".join(names)) == names
    boxes = [thing(0, 0, 9, 9, first), thing(0, 0, 9, 9, "none of them")]
    graph["4"] = load(written(boxes))
    graph["5"] = node("VisionLLMFilterBoxes", bboxes=["4", 0], **FILTER | {"names": ["3", 0]})
    assert [box["label"] for box in value(server, graph, ["5", 0])[0]] == [first]
