"""The question nodes through the queue, with random weights: types, wiring, sharing, memory, interrupts and errors."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import save_file

from mulan_nodes.tools.comfy_server import GraphFailed, GraphRejected, decode
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.tools.shards import shard
from mulan_nodes.visionllm_nodes.detections.skeletons import PRESETS

DRAW = {
    "names": True,
    "scores": False,
    "keypoint_names": False,
    "colours": "by name",
    "mask_opacity": 0.4,
    "line_width": 0,
    "text_size": 0,
}
FOLDER, EAGER, DRAWING, SHARED = "VisionLLMv2", "Eager", "Drawing", "Shared"
WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module", autouse=True)
def checkpoints(models):
    """A published folder of shards with all parts; models that answer everything with one tool; and files that cannot
    serve.
    """
    folder = models / "visionllm"
    shard(random_visionllm.checkpoint(folder / FOLDER, mappers=True))
    random_visionllm.checkpoint(folder / "Eager", writes="[DET]")
    random_visionllm.checkpoint(folder / "Drawing", mappers=True, writes="[GEN]")
    random_visionllm.checkpoint(folder / "Shared")
    save_file({"something": torch.zeros(2, 2)}, folder / "wrong.safetensors")
    random_visionllm.checkpoint(folder / "Mute")
    (folder / "Mute" / "tokenizer.model").unlink()


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loader(checkpoint: str = FOLDER, **more) -> dict:
    return node("VisionLLMLoader", checkpoint=checkpoint, **more)


def pictures(count: int = 1) -> dict:
    """Node 2 is a batch of so many different pictures, node 20 one picture."""
    each = {
        f"2{number}": node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=1, color=0x112233 * (number + 1))
        for number in range(count)
    }
    return {
        **each,
        "2": node("BatchImagesNode", **{f"images.image{number}": [id, 0] for number, id in enumerate(each)}),
    }


def asking(kind: str, count: int = 1, checkpoint: str = FOLDER, /, **inputs) -> dict:
    """Loader 1, pictures 2, question 3."""
    return {"1": loader(checkpoint), **pictures(count), "3": node(kind, visionllm=["1", 0], **inputs)}


def detect(count: int = 1, **inputs) -> dict:
    return asking(
        "VisionLLMDetect",
        count,
        image=["2", 0],
        **{"names": "red star, 蓝色的圆\nкруг", "threshold": 0.0, "top_k": 5, **inputs},
    )


def shown(outputs, id: str = "3") -> dict:
    """What a node's JSON says."""
    return json.loads(outputs.nodes[id]["text"][0])


def preview(graph: dict, **links) -> dict:
    """The graph with a PreviewAny for each output: name=number."""
    return {**graph, **{name: node("PreviewAny", source=["3", number]) for name, number in links.items()}}


# --- what each gives ---


def test_detect_returns_boxes_per_image_in_order(server):
    outputs = server.run(preview(detect(3), boxes=0, count=3, json=4))
    told = shown(outputs)
    assert (
        told["format"] == "visionllm-nodes/1"
        and told["task"] == "detect"
        and told["prompt"] == "red star, 蓝色的圆, круг"
    )
    assert (
        outputs.nodes["json"]["text"][0] == outputs.nodes["3"]["text"][0] and outputs.nodes["count"]["text"][0] == "15"
    )
    boxes = json.loads(outputs.nodes["boxes"]["text"][0])
    assert (
        [len(of_picture) for of_picture in boxes] == [len(record["objects"]) for record in told["frames"]] == [5, 5, 5]
    )
    for of_picture in boxes:
        scores = [box["score"] for box in of_picture]
        assert scores == sorted(scores, reverse=True) and {box["label"] for box in of_picture} <= {
            "red star",
            "蓝色的圆",
            "круг",
        }
        assert all(0 <= box["x"] <= box["x"] + box["width"] <= WIDTH + 1e-3 for box in of_picture)
    assert boxes[0] != boxes[1]


def test_limits_of_detect(server):
    (frame,) = shown(server.run(detect(per_name=1)))["frames"]
    labels = [thing["label"] for thing in frame["objects"]]
    assert len(labels) == len(set(labels))
    (alone,) = shown(server.run(detect(nms="across names", nms_overlap=0.0, top_k=900)))["frames"]
    (every,) = shown(server.run(detect(top_k=900)))["frames"]
    assert 0 < len(alone["objects"]) < len(every["objects"])
    none = server.run(preview(detect(threshold=1.0), count=3))
    assert none.nodes["count"]["text"][0] == "0" and shown(none)["frames"][0]["objects"] == []


def test_negative_names_are_not_found(server):
    graph = detect(names="star, circle", negative="dog, cat", threshold=0.0, top_k=9)
    labels = [thing["label"] for thing in shown(server.run(graph))["frames"][0]["objects"]]
    assert set(labels) <= {"star", "circle"}
    with pytest.raises(GraphRejected, match="'star' appears 2 times"):
        server.run(detect(names="star", negative="star"))


def test_masks_in_json_is_an_option(server):
    thing = shown(server.run(detect(top_k=1, masks_in_json=True)))["frames"][0]["objects"][0]
    assert thing["mask"]["size"] == [HEIGHT, WIDTH] and sum(thing["mask"]["counts"]) == HEIGHT * WIDTH


@pytest.mark.parametrize("kind", ["phrase", "question"])
def test_ground_returns_one_object(server, kind):
    (frame,) = shown(
        server.run(asking("VisionLLMGround", image=["2", 0], sentence="왼쪽에 있는 개", kind=kind, threshold=0.0))
    )["frames"]
    assert [thing["label"] for thing in frame["objects"]] == ["왼쪽에 있는 개"]
    assert (
        shown(server.run(asking("VisionLLMGround", image=["2", 0], sentence="x", kind=kind, threshold=1.0)))["frames"][
            0
        ]["objects"]
        == []
    )


@pytest.mark.parametrize(
    ("kind", "label"), [("what stands out", "salient object"), ("what hides", "camouflaged object")]
)
def test_what_stands_out_or_hides_needs_no_sentence(server, kind, label):
    told = shown(server.run(asking("VisionLLMGround", 2, image=["2", 0], sentence="", kind=kind, threshold=0.0)))
    assert [[thing["label"] for thing in frame["objects"]] for frame in told["frames"]] == [[label]] * 2
    assert told["prompt"] == label


@pytest.mark.parametrize("mode", ["semantic", "instance"])
def test_segment(server, mode):
    graph = asking(
        "VisionLLMSegment",
        2,
        image=["2", 0],
        names="star, circle",
        mode=mode,
        others="sky, sea",
        threshold=0.0,
        top_k=4,
    )
    told = shown(server.run(preview(graph, boxes=0)))
    labels = [thing["label"] for record in told["frames"] for thing in record["objects"]]
    assert set(labels) <= {"star", "circle"} and len(told["frames"]) == 2
    assert mode == "semantic" or len(labels) == 8


def test_class_names_are_asked_about(server):
    """All of COCO's in one prompt of Detect, all of ADE20K's as the names that Segment does not return."""
    graph = detect(names=["5", 0], top_k=900) | {"5": node("VisionLLMClassNames", list="COCO-80")}
    told = shown(server.run(graph))
    names = told["prompt"].split(", ")
    assert len(names) == 80 and {thing["label"] for thing in told["frames"][0]["objects"]} <= {*names}
    graph = asking("VisionLLMSegment", image=["2", 0], names="star", mode="semantic", others=["5", 0])
    graph |= {"5": node("VisionLLMClassNames", list="ADE20K-150")}
    graph["3"]["inputs"] |= {"threshold": 0.0, "top_k": 4}
    told = shown(server.run(graph))
    assert {thing["label"] for thing in told["frames"][0]["objects"]} <= {"star"}


def test_pose_with_a_preset_and_with_own_names(server):
    graph = asking(
        "VisionLLMPose",
        2,
        image=["2", 0],
        objects="",
        skeleton="person, 17 (COCO)",
        keypoints="",
        threshold=0.0,
        top_k=3,
    )
    drawn = node(
        "SDPoseDrawKeypoints",
        keypoints=["3", 1],
        draw_body=True,
        draw_hands=True,
        draw_face=True,
        draw_feet=False,
        draw_head=True,
        stick_width=4,
        face_point_size=3,
        score_threshold=0.3,
    )
    told = shown(server.run({**graph, "9": drawn, "10": node("PreviewImage", images=["9", 0])}))
    thing = told["frames"][1]["objects"][0]
    assert (
        told["prompt"] == thing["label"] == "person"
        and len(thing["keypoints"]) == 17
        and thing["keypoints"][0]["name"] == "nose"
    )
    assert told["frames"][0]["skeleton"]

    own = asking(
        "VisionLLMPose",
        image=["2", 0],
        objects="dog",
        skeleton="own keypoints",
        keypoints="left ear, Schwanzspitze",
        threshold=0.0,
        top_k=3,
    )
    thing = shown(server.run(own))["frames"][0]["objects"][0]
    assert [point["name"] for point in thing["keypoints"]] == ["left ear", "Schwanzspitze"]


@pytest.mark.parametrize("name", ["fly, 32 (Vinegar Fly)", "long sleeved outwear, 39 (DeepFashion2)"])
def test_a_skeleton_is_asked_for_and_drawn_with_its_bones(server, name):
    skeleton = PRESETS[name]
    graph = asking("VisionLLMPose", image=["2", 0], objects="", skeleton=name, threshold=0.0, top_k=2)
    graph["4"] = node("VisionLLMDrawDetections", keypoints=["3", 0], **DRAW)
    graph["5"] = node("SaveImage", images=["4", 0], filename_prefix="skeleton")
    outputs = server.run(graph)
    told = shown(outputs)
    (frame,) = told["frames"]
    assert told["prompt"] == skeleton.object and len(frame["objects"]) == 2
    assert frame["skeleton"] == [list(bone) for bone in skeleton.bones]
    assert all([point["name"] for point in found["keypoints"]] == [*skeleton.keypoints] for found in frame["objects"])
    assert outputs.images[0].any()
    graph |= {"pose": node("PreviewAny", source=["3", 1])}
    with pytest.raises(GraphFailed, match="none of the keypoints belongs to OpenPose"):
        server.run(graph)


def region(count: int = 1, **inputs) -> dict:
    return asking(
        "VisionLLMRegion", count, image=["2", 0], **{"question": "segment", "threshold": 0.0, "top_k": 6, **inputs}
    )


POINTS = '[{"x": 10, "y": 20}, {"x": 90, "y": 60}]'


@pytest.mark.parametrize(
    "question, objects",
    [
        ("segment", 2),
        ("find alike", None),
        ("count", None),
        ("describe", 2),
        ("name", 2),
        ("name (COCO-80)", 2),
        ("name (LVIS-1203)", 2),
    ],
)
def test_region_questions(server, question, objects):
    outputs = server.run(preview(region(2, question=question, points=POINTS), count=3, text=5))
    told = shown(outputs)
    counts = [len(record["objects"]) for record in told["frames"]]
    assert counts == [objects] * 2 if objects else 0 < max(counts) <= 6
    assert outputs.nodes["count"]["text"][0] == str(sum(counts)) and told["task"] == question
    assert len(outputs.nodes["text"]["text"][0].split("\n\n")) == 2


def test_an_example_in_other_images_is_found(server):
    """Marked in two example images of another size, looked for in three."""
    example = {"7": node("EmptyImage", width=48, height=80, batch_size=2, color=0x884422)}
    for question, objects in (("segment", [1, 1, 1]), ("find alike", None)):
        graph = region(3, question=question, points='{"x": 40, "y": 70}', example=["7", 0]) | example
        outputs = server.run(preview(graph, count=3))
        told = shown(outputs)
        counts = [len(record["objects"]) for record in told["frames"]]
        assert counts == objects or objects is None and 0 < max(counts) <= 6
        assert {one["label"] for record in told["frames"] for one in record["objects"]} == {"example"}
        assert [(record["width"], record["height"]) for record in told["frames"]] == [(WIDTH, HEIGHT)] * 3
    wrong = region(1, question="name", points='{"x": 4, "y": 7}', example=["7", 0]) | example
    with pytest.raises(GraphFailed, match="question: name is about regions of image itself"):
        server.run(wrong)


def test_regions_are_ordered_masks_boxes_points(server):
    graph = region(question="describe", points='[{"x": 5, "y": 6}]', mask=["4", 0], bboxes=["5", 0])
    graph |= {
        "4": node("SolidMask", value=1.0, width=20, height=20),
        "5": node("PrimitiveBoundingBox", x=10, y=12, width=30, height=20),
    }
    (frame,) = shown(server.run(graph))["frames"]
    assert [thing["box"] for thing in frame["objects"]] == [[0, 0, WIDTH, HEIGHT], [10, 12, 30, 20], [5, 6, 0, 0]]


def test_detected_boxes_are_regions_of_their_image(server):
    asked = node(
        "VisionLLMRegion",
        visionllm=["1", 0],
        image=["2", 0],
        question="segment",
        bboxes=["3", 0],
        threshold=0.0,
        top_k=9,
    )
    graph = detect(2, top_k=2) | {"4": asked}
    told = shown(server.run(graph), "4")
    assert [len(record["objects"]) for record in told["frames"]] == [2, 2]


def ask(count: int = 1, **inputs) -> dict:
    return asking("VisionLLMAsk", count, **{"question": "What is it?", "max_tokens": 6, **inputs})


def test_ask_answers_per_image_or_about_all_images(server):
    each = server.run(preview(ask(2, **{"images.image_1": ["2", 0]}), text=0, history=1))
    assert len(each.nodes["text"]["text"]) == len(each.nodes["history"]["text"]) == len(shown(each)["frames"]) == 2
    assert [record["text"] for record in shown(each)["frames"]] == each.nodes["text"]["text"]
    together = server.run(
        preview(ask(2, **{"images.image_1": ["2", 0], "images.image_2": ["20", 0]}, pictures="all together"), text=0)
    )
    assert together.nodes["text"]["text"] == [shown(together)["text"]] and len(shown(together)["frames"]) == 3
    talk = server.run(ask(answer="a word or phrase"))
    assert shown(talk)["frames"] == [] and shown(talk)["prompt"].endswith("single word or phrase.")


def test_history_continues_a_conversation(server):
    graph = ask(**{"images.image_1": ["2", 0]})
    graph["4"] = node(
        "VisionLLMAsk",
        visionllm=["1", 0],
        question="Why?",
        max_tokens=6,
        history=["3", 1],
        **{"images.image_1": ["2", 0]},
    )
    graph["5"] = node("PreviewAny", source=["4", 1])
    outputs = server.run(graph)
    said = json.loads(outputs.nodes["5"]["text"][0])
    assert (
        [entry["role"] for entry in said] == ["user", "assistant"] * 2
        and said[0]["content"] == "What is it?"
        and said[2]["content"] == "Why?"
    )
    fresh = server.run(ask(question="Why?", **{"images.image_1": ["2", 0]}))
    assert shown(fresh)["frames"][0]["text"] != shown(outputs, "4")["frames"][0]["text"]


def test_a_question_names_regions(server):
    """Boxes of a detector, a point: their names are in the answer's boxes, and which is which matters."""
    about = {"images.image_1": ["2", 0], "points": '[{"x": 5, "y": 6}]'}
    graph = ask(2, question="Is region1 left of region2?", bboxes=["5", 0], **about)
    graph["5"] = node("PrimitiveBoundingBox", x=60, y=12, width=30, height=20)
    graph["6"] = node("PreviewAny", source=["3", 3])
    outputs = server.run(graph)
    told = shown(outputs)
    assert told["prompt"] == "Is region1 left of region2?" and all(frame["text"] for frame in told["frames"])
    for objects in (frame["objects"] for frame in told["frames"]):
        assert [(thing["label"], thing["box"]) for thing in objects] == [
            ("region1", [60, 12, 30, 20]),
            ("region2", [5, 6, 0, 0]),
        ]
    assert [[box["label"] for box in boxes] for boxes in json.loads(outputs.nodes["6"]["text"][0])] == [
        ["region1", "region2"]
    ] * 2


def test_history_names_the_regions_of_a_later_question(server):
    seen = {"images.image_1": ["2", 0], "points": POINTS}
    graph = ask(question="What is region2?", **seen)
    graph["4"] = node("VisionLLMAsk", visionllm=["1", 0], question="Why?", max_tokens=6, history=["3", 1], **seen)
    outputs = server.run(graph | {"5": node("PreviewAny", source=["4", 1])})
    said = json.loads(outputs.nodes["5"]["text"][0])
    assert [turn["content"] for turn in said[::2]] == ["What is region2?", "Why?"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"question": "region3?"}, "question about image 1: it names region3, but 2 regions are marked"),
        ({"question": "What?"}, "question about image 1: it names no region"),
        ({"question": "region1?", "pictures": "all together"}, "one image at a time. Set pictures to one by one"),
    ],
)
def test_regions_that_cannot_be_asked_about(server, inputs, words):
    graph = ask(2, **{"images.image_1": ["2", 0], "points": POINTS, **inputs})
    with pytest.raises(GraphFailed, match=words):
        server.run(graph)


def test_sampling_is_reproducible_by_seed(server):
    def text(seed):
        return shown(server.run(ask(temperature=1.5, top_p=1.0, seed=seed, **{"images.image_1": ["2", 0]})))["frames"][
            0
        ]["text"]

    assert text(1) != text(2)


def test_instruct_runs_the_tools_of_the_answer(server):
    graph = asking(
        "VisionLLMInstruct", 2, EAGER, sentence="find the dog", image=["2", 0], threshold=0.0, top_k=4, max_tokens=2
    )
    outputs = server.run(preview(graph, text=0, boxes=1, keypoints=6))
    assert outputs.nodes["text"]["text"] == ["", ""]
    assert [len(record["objects"]) for record in shown(outputs)["frames"]] == [4, 4]
    assert all(not frame["objects"] for frame in json.loads(outputs.nodes["keypoints"]["text"][0]))


def test_instruct_blocks_conditioning_outputs_without_a_token(server):
    graph = asking(
        "VisionLLMInstruct", 1, EAGER, sentence="find the dog", image=["2", 0], threshold=0.0, top_k=4, max_tokens=2
    )
    outputs = server.run(preview(graph, generate=7, edit=8))
    assert "generate" not in outputs.nodes and "edit" not in outputs.nodes and shown(outputs)["frames"]


# --- wires ---

CHECKPOINT = {"30": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")}


def sampled(positive: list, negative: list, latent: list, id: str) -> dict:
    return {
        id: node(
            "KSampler",
            model=["30", 0],
            seed=1,
            steps=1,
            cfg=3.0,
            sampler_name="euler",
            scheduler="normal",
            positive=positive,
            negative=negative,
            latent_image=latent,
            denoise=1.0,
        ),
        f"{id}1": node("VAEDecode", samples=[id, 0], vae=["30", 2]),
        f"{id}2": node("PreviewImage", images=[f"{id}1", 0]),
    }


def test_every_output_of_detect_goes_into_stock_nodes(server):
    graph = (
        detect(2)
        | CHECKPOINT
        | {
            "10": node("DrawBBoxes", image=["2", 0], bboxes=["3", 0]),
            "11": node("PreviewImage", images=["10", 0]),
            "12": node(
                "CropByBBoxes",
                image=["2", 0],
                bboxes=["3", 0],
                output_width=64,
                output_height=64,
                padding=0,
                keep_aspect="stretch",
            ),
            "13": node("PreviewImage", images=["12", 0]),
            "14": node("VisionLLMPickBox", bboxes=["3", 0], image=["2", 0], index=0, picture=1, margin=0),
            "15": node("ImageCropV2", image=["2", 0], crop_region=["14", 0]),
            "16": node("PreviewImage", images=["15", 0]),
            "17": node("MaskComposite", destination=["3", 1], source=["3", 1], x=0, y=0, operation="add"),
            "18": node("MaskPreview", mask=["17", 0]),
            "19": node("MaskPreview", mask=["3", 2]),
            "40": node("VAEEncodeForInpaint", pixels=["2", 0], vae=["30", 2], mask=["3", 1], grow_mask_by=2),
            "41": node("CLIPTextEncode", clip=["30", 1], text=["3", 4]),
            "42": node(
                "ConditioningSetMask", conditioning=["41", 0], mask=["3", 1], strength=1.0, set_cond_area="default"
            ),
            **sampled(["42", 0], ["41", 0], ["40", 0], "43"),
            "44": node("VAEEncode", pixels=["2", 0], vae=["30", 2]),
            "45": node("SetLatentNoiseMask", samples=["44", 0], mask=["3", 1]),
            **sampled(["41", 0], ["41", 0], ["45", 0], "46"),
            "47": node("PreviewAny", source=["3", 3]),
        }
    )
    outputs = server.run(graph)
    assert [len(outputs.files[id]) for id in ("11", "13", "18", "19", "432", "462")] == [2, 2, 2, 10, 2, 2]


def test_stock_nodes_accept_empty_detections(server):
    graph = detect(threshold=1.0) | {
        "10": node("DrawBBoxes", image=["2", 0], bboxes=["3", 0]),
        "11": node("PreviewImage", images=["10", 0]),
        "12": node(
            "CropByBBoxes",
            image=["2", 0],
            bboxes=["3", 0],
            output_width=64,
            output_height=64,
            padding=0,
            keep_aspect="stretch",
        ),
        "13": node("PreviewImage", images=["12", 0]),
        "18": node("MaskPreview", mask=["3", 1]),
        "19": node("MaskPreview", mask=["3", 2]),
    }
    (empty,) = server.run(graph).files["19"]
    assert not decode(empty).any()


def test_boxes_drawn_by_hand_are_regions(server):
    drawn = {"__value__": [{"x": 10, "y": 12, "width": 30, "height": 20}, {"x": 50, "y": 2, "width": 40, "height": 60}]}
    graph = region(question="describe", bboxes=["5", 1]) | {
        "5": node("CreateBoundingBoxes", width=WIDTH, height=HEIGHT, editor_state=drawn)
    }
    (frame,) = shown(server.run(graph))["frames"]
    assert [thing["box"] for thing in frame["objects"]] == [[10, 12, 30, 20], [50, 2, 40, 60]]


@pytest.mark.parametrize("checkpoint", [FOLDER, DRAWING])
def test_conditioning_generates_with_stable_diffusion(server, checkpoint):
    graph = {
        "1": loader(checkpoint),
        **CHECKPOINT,
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "3": node("VisionLLMGenerateConditioning", visionllm=["1", 0], prompt="빨간 별", clip=["30", 1], negative=""),
    }
    graph |= sampled(["3", 0], ["3", 1], ["4", 0], "5")
    assert len(server.run(graph).files["52"]) == 1


def test_generate_output_of_instruct_generates_an_image(server):
    graph = {
        "1": loader(DRAWING),
        **CHECKPOINT,
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "3": node(
            "VisionLLMInstruct", visionllm=["1", 0], sentence="Draw a red star.", threshold=0.3, top_k=10, max_tokens=1
        ),
        "6": node("CLIPTextEncode", clip=["30", 1], text=""),
    }
    outputs = server.run(graph | sampled(["3", 7], ["6", 0], ["4", 0], "5"))
    assert len(outputs.files["52"]) == 1 and shown(outputs)["frames"] == []


def test_edit_conditioning_per_image_goes_into_the_stock_node(server):
    graph = (
        asking(
            "VisionLLMEditConditioning", 2, image=["2", 0], instruction="make it winter", clip=["30", 1], negative=""
        )
        | CHECKPOINT
        | {
            "4": node(
                "InstructPixToPixConditioning", positive=["3", 0], negative=["3", 1], vae=["30", 2], pixels=["2", 0]
            ),
            "5": node("PreviewAny", source=["4", 0]),
            "6": node("PreviewAny", source=["4", 1]),
        }
    )
    assert {"5", "6"} <= server.run(graph).nodes.keys()


def test_a_negative_without_a_clip_says_what_to_connect(server):
    graph = {
        "1": loader(),
        "3": node("VisionLLMGenerateConditioning", visionllm=["1", 0], prompt="a star"),
        "4": node("PreviewAny", source=["3", 1]),
    }
    with pytest.raises(GraphFailed, match="clip: not connected"):
        server.run(graph)
    assert "4" in server.run({**graph, "4": node("PreviewAny", source=["3", 0])}).nodes


# --- the model ---


@pytest.mark.parametrize(
    "choice", [{"precision": "bf16"}, {"precision": "fp16"}, {"precision": "fp32", "device": "cpu"}]
)
def test_precision_and_device(server, choice):
    graph = detect(top_k=3)
    graph["1"] = loader(**choice)
    assert len(shown(server.run(graph))["frames"][0]["objects"]) == 3


def loads(server) -> int:
    """How often a VisionLLM went to its device."""
    return server.log.read_text("utf-8", "replace").count("Requested to load VisionLLM")


def test_a_workflow_that_names_the_file_inside_a_folder_still_runs(server):
    """As it was listed before a config.json lay beside it."""
    graph = {
        "1": loader(f"{SHARED}/model.safetensors"),
        **pictures(),
        "3": node("VisionLLMGround", visionllm=["1", 0], image=["2", 0], sentence="a star", threshold=0.0),
    }
    assert shown(server.run(graph))["task"] == "ground"


def test_two_loaders_and_two_graphs_share_one_copy(server):
    """Loaders that say the same are one: twice in one graph, and in the next graph under another number."""
    before = loads(server)
    for number in (1, 2):
        graph = pictures()
        for id in (f"{number}71", f"{number}72"):
            question = node(
                "VisionLLMGround", visionllm=[id, 0], image=["2", 0], sentence=f"a star {id}", threshold=0.0
            )
            graph |= {id: loader(SHARED), f"{id}3": question}
        assert len(server.run(graph).nodes) == 2
        assert loads(server) == before + 1


def test_free_unloads_the_model_and_the_next_workflow_loads_it_again(server):
    server.run(detect(names="once"))
    before = loads(server)
    server.run(detect(names="twice"))
    assert loads(server) == before
    for seconds in (2, 10):  # the server frees between two graphs, when it comes to it
        server.free()
        time.sleep(seconds)
        assert len(shown(server.run(detect(names=f"again, {seconds}")))["frames"]) == 1
        if loads(server) > before:
            break
    assert loads(server) == before + 1


def test_a_batch_can_be_stopped(server):
    graph = detect(8, names="\n".join(f"thing {number}" for number in range(200)))
    seen = []

    def stop(node_id, step, steps):
        if node_id == "3" and not seen:
            server.interrupt()
        seen.append((step, steps))

    with pytest.raises(GraphFailed) as failure:
        server.wait(server.post(graph), stop)
    assert failure.value.exception == "interrupted" and failure.value.node == "3"
    assert seen[-1][0] < seen[-1][1] / 2, seen[-1]
    assert len(shown(server.run(detect(names="after the stop")))["frames"]) == 1


def test_progress_of_a_batch_only_grows(server):
    steps = []
    server.run(
        detect(3, names="progress"),
        progress=lambda node_id, step, of: steps.append((step, of)) if node_id == "3" else None,
    )
    shares = [step / of for step, of in steps]
    assert shares == sorted(shares) and shares[-1] == 1


# --- errors ---

REJECTED = {
    "no names": (detect(names=" ,\n"), "3", ["names: the list of names is empty", "one name per line"]),
    "a token of the model": (detect(names="dog, [DET]"), "3", ["names: ", "'[DET]'", "own tokens"]),
    "no sentence": (
        asking("VisionLLMGround", image=["2", 0], sentence=" ", threshold=0.0),
        "3",
        ["sentence: ", "empty"],
    ),
    "no such kind": (
        asking("VisionLLMGround", image=["2", 0], sentence="x", kind="best", threshold=0.0),
        "3",
        ["kind: 'best' is not one of phrase, question"],
    ),
    "no question": (ask(question=""), "3", ["question: ", "empty"]),
    "no instruction": (
        asking("VisionLLMEditConditioning", image=["2", 0], instruction=""),
        "3",
        ["instruction: ", "empty"],
    ),
    "no prompt": (
        {"1": loader(), "3": node("VisionLLMGenerateConditioning", visionllm=["1", 0], prompt="!")},
        "3",
        ["prompt: ", "empty"],
    ),
    "nothing to instruct": (
        asking("VisionLLMInstruct", sentence="<image>", threshold=0.0, top_k=1),
        "3",
        ["sentence: ", "'<image>'"],
    ),
    "no keypoints": (
        asking(
            "VisionLLMPose",
            image=["2", 0],
            objects="dog",
            skeleton="own keypoints",
            keypoints="",
            threshold=0.0,
            top_k=1,
        ),
        "3",
        ["keypoints: the list"],
    ),
    "no object": (
        asking(
            "VisionLLMPose",
            image=["2", 0],
            objects="",
            skeleton="own keypoints",
            keypoints="ear",
            threshold=0.0,
            top_k=1,
        ),
        "3",
        ["objects: the list"],
    ),
    "another skeleton": (
        asking("VisionLLMPose", image=["2", 0], objects="", skeleton="squid", keypoints="", threshold=0.0, top_k=1),
        "3",
        ["skeleton: 'squid' is not one of person, 17 (COCO)"],
    ),
    "no region": (region(), "3", ["mask, bboxes, points: no region is marked"]),
    "another question": (
        region(points=POINTS, question="why"),
        "3",
        ["question: 'why' is not one of segment, find alike"],
    ),
    "points that are not JSON": (region(points="10, 20"), "3", ["points: not valid JSON", '[{"x": 12, "y": 34}]']),
    "a point without y": (region(points='[{"x": 1}]'), "3", ['points: point 1 must have numbers for "x" and "y"']),
    "a file of something else": (
        {**detect(), "1": loader("wrong.safetensors")},
        "1",
        ["wrong.safetensors (in ", "not a VisionLLM v2 checkpoint", "OpenGVLab/VisionLLMv2"],
    ),
    "no tokenizer": ({**detect(), "1": loader("Mute")}, "1", ["has no tokenizer", "tokenizer.model"]),
    "a file that is gone": (
        {**detect(), "1": loader("gone.safetensors")},
        "1",
        ["'gone.safetensors' is not in", "visionllm"],
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_invalid_questions_are_rejected_before_anything_loads(server, name):
    graph, id, words = REJECTED[name]
    if graph["3"]["class_type"].endswith("Conditioning"):  # no output node
        graph = {**graph, "4": node("PreviewAny", source=["3", 0])}
    with pytest.raises(GraphRejected) as refusal:
        server.run(graph)
    details = refusal.value.node_errors[id]["errors"][0]["details"]
    for word in words:
        assert word in details, details


FAILED = {
    "a history without an answer": (
        ask(history=["5", 0]) | {"5": node("PrimitiveString", value='[{"role": "user", "content": "a"}]')},
        "history: the last question has no answer",
    ),
    "connected names": (
        detect(names=["5", 0]) | {"5": node("PrimitiveString", value=" ")},
        "names: the list of names is empty",
    ),
    "a point outside": (region(points='[{"x": 500, "y": 5}]'), "points: region 1 is empty"),
    "an empty mask": (
        region(mask=["5", 0]) | {"5": node("SolidMask", value=0.0, width=8, height=8)},
        "mask: region 1 is empty",
    ),
    "too many keypoints": (
        asking(
            "VisionLLMPose",
            image=["2", 0],
            objects="dog",
            skeleton="own keypoints",
            threshold=0.0,
            top_k=1,
            keypoints="\n".join(f"point {number}" for number in range(69)),
        ),
        "at most 68",
    ),
    "no mapper": (
        {
            **asking("VisionLLMEditConditioning", 1, EAGER, image=["2", 0], instruction="x"),
            "5": node("PreviewAny", source=["3", 0]),
        },
        "has no mapper to InstructPix2Pix",
    ),
}


@pytest.mark.parametrize("name", FAILED)
def test_errors_while_running_name_the_field(server, name):
    graph, words = FAILED[name]
    with pytest.raises(GraphFailed) as failure:
        server.run(graph)
    assert failure.value.node == "3" and words in failure.value.message, failure.value.message
