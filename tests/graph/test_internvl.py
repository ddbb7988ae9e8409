"""The InternVL nodes through the queue, on small checkpoints of random weights: forms, lists, wires, folders, sharing,
stops and errors. Not sense.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mulan_nodes.tools.comfy_server import GraphFailed, GraphRejected, decode
from mulan_nodes.tools.random_checkpoints import internvl as random_internvl

FOLDER, ALONE, VISION, IN_ENCODERS, INSIDE = (
    "InternVL",
    "OnlyC",
    "vision.safetensors",
    "InternVL-in-encoders",
    "in the checkpoint",
)
TINY_ENCODER = "tiny_internvl.safetensors"
LABELS = "red circle\n青い四角, 大きい\nзелёный круг\nدائرة"


@pytest.fixture(scope="module", autouse=True)
def checkpoints(models):
    """Published folders of C and G, and of C alone; one that lies in text_encoders; a vision side for the tiny text
    encoder; and wrong files.
    """
    folder = models / "internvl"
    random_internvl.checkpoint(folder / FOLDER, shards="bin")
    random_internvl.checkpoint(folder / ALONE, reader=False, shards="safetensors", seed=5)
    random_internvl.checkpoint(models / "text_encoders" / IN_ENCODERS, shards="safetensors", seed=6)
    sizes = {**random_internvl.recipe.CASES["one"], "text_width": 128}
    vision = {
        name: value
        for name, value in random_internvl.tensors(text_width=128).items()
        if not name.startswith("qllama.") or ".cross_attn." in name
    }
    configuration = random_internvl.recipe.configuration(sizes, random_internvl.PIECES)
    save_file(vision, folder / VISION, metadata={"config": json.dumps(configuration)})
    save_file({"something": torch.zeros(2, 2)}, folder / "wrong.safetensors")


@pytest.fixture
def album(server):
    """A folder in the input folder: six pictures of several sizes, and its name there."""
    folder = Path(server.folder, "input", f"album {time.monotonic_ns()}")
    folder.mkdir()
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (20 + 3 * number, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loader(checkpoint: str = FOLDER, text_encoder: str = INSIDE, **more) -> dict:
    return node("InternVLLoader", checkpoint=checkpoint, text_encoder=text_encoder, **more)


def pictures(count: int, first: str = "2") -> dict:
    """A batch of so many different pictures under this id."""
    each = {
        f"{first}{number}": node(
            "EmptyImage", width=40, height=30, batch_size=1, color=0x153045 * (number + 1) % 0xFFFFFF
        )
        for number in range(count)
    }
    return {
        **each,
        first: node("BatchImagesNode", **{f"images.image{number}": [id, 0] for number, id in enumerate(each)}),
    }


def asking(kind: str, count: int = 0, model: dict | None = None, /, **inputs) -> dict:
    """Loader 1, pictures 2 if any, question 3."""
    image = {"image": ["2", 0]} if count else {}
    return {
        "1": model or loader(),
        **(pictures(count) if count else {}),
        "3": node(kind, internvl=["1", 0], **image, **inputs),
    }


def classify(count: int = 0, model: dict | None = None, /, **inputs) -> dict:
    return asking("InternVLZeroShotClassify", count, model, **{"labels": LABELS, **inputs})


def rank(count: int = 0, model: dict | None = None, /, **inputs) -> dict:
    return asking("InternVLRank", count, model, **{"query": "красный круг", **inputs})


def shown(outputs, id: str = "3") -> dict:
    """What a node's JSON says."""
    return json.loads(outputs.nodes[id]["text"][0])


def preview(graph: dict, **links) -> dict:
    """The graph with a PreviewAny for each output of node 3: name=number."""
    return {**graph, **{name: node("PreviewAny", source=["3", number]) for name, number in links.items()}}


def values(outputs, name: str) -> list[str]:
    return outputs.nodes[name]["text"]


# --- classify ---


def test_each_picture_of_a_batch_gets_its_labels(server):
    outputs = server.run(preview(classify(3, top_k=2), label=0, score=1, labels=2, names=3, json=4))
    told = shown(outputs)
    assert (
        told["format"] == "internvl-nodes/1"
        and told["task"] == "classify"
        and told["mode"] == "C"
        and told["model"] == FOLDER
    )
    assert told["labels"] == LABELS.split("\n") and "repeated" not in told and "unreadable" not in told
    assert json.loads(values(outputs, "json")[0]) == told
    assert (
        values(outputs, "names")
        == [each["name"] for each in told["pictures"]]
        == ["picture 1", "picture 2", "picture 3"]
    )
    for number, each in enumerate(told["pictures"]):
        assert len(each["labels"]) == 2 and values(outputs, "label")[number] == each["labels"][0]["label"]
        assert values(outputs, "labels")[number] == ", ".join(label["label"] for label in each["labels"])
        assert float(values(outputs, "score")[number]) == pytest.approx(each["labels"][0]["softmax"], rel=1e-4)
        assert each["labels"][0]["cosine"] >= each["labels"][1]["cosine"]


def test_softmax_and_independent_scores(server):
    every = shown(server.run(classify(2, top_k=10)))["pictures"]
    assert all(sum(label["softmax"] for label in each["labels"]) == pytest.approx(1, abs=1e-4) for each in every)
    outputs = server.run(preview(classify(2, scores="independent", labels="red circle"), score=1))
    for number, each in enumerate(every):
        cosine = next(label["cosine"] for label in each["labels"] if label["label"] == "red circle")
        assert float(values(outputs, "score")[number]) == pytest.approx(cosine, abs=1e-5), (
            "other labels do not change it"
        )
    assert shown(outputs)["pictures"][0]["labels"][0]["softmax"] == 1


def test_templates_change_the_scores(server):
    def cosines(**inputs):
        return [
            label["cosine"]
            for label in shown(server.run(classify(1, scores="independent", labels="cat", **inputs)))["pictures"][0][
                "labels"
            ]
        ]

    plain, paper, own = (
        cosines(),
        cosines(templates="Japanese (paper)"),
        cosines(templates="own", own_templates="{c}の絵"),
    )
    assert plain != paper and plain != own and paper != own
    assert cosines(templates="own", own_templates="{}\n") == pytest.approx(plain, abs=1e-5)
    assert shown(server.run(classify(1, templates="German")))["templates"] == "German"


def test_a_thousand_labels_and_labels_that_repeat(server):
    names = [f"thing {number}" for number in range(1000)]
    told = shown(server.run(classify(1, labels="\n".join([*names, "thing 7", " thing 7 ", "thing 8"]), top_k=3)))
    assert (
        told["labels"] == names
        and told["repeated"] == ["thing 7", "thing 8"]
        and len(told["pictures"][0]["labels"]) == 3
    )


def test_pictures_of_several_sizes_in_a_list_are_one_question(server, album):
    graph = classify() | {"2": node("LoadImageDataSetFromFolder", folder=album.name)}
    graph["3"]["inputs"]["image"] = ["2", 0]
    told = shown(server.run(graph))
    assert len(told["pictures"]) == 6


def test_a_label_can_drive_stock_nodes(server):
    graph = classify(2) | {
        "4": node("StringConcatenate", string_a="a picture of ", string_b=["3", 0], delimiter=""),
        "5": node("PreviewAny", source=["4", 0]),
    }
    assert [text.startswith("a picture of ") for text in values(server.run(graph), "5")] == [True, True]


def test_framings_differ_where_a_picture_is_not_square(server, album):
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(album / "square.png")
    crop, whole = (
        shown(server.run(classify(folder=album.name, framing=framing, scores="independent")))
        for framing in ("crop", "whole")
    )
    assert (crop["framing"], whole["framing"]) == ("crop", "whole") and shown(server.run(classify(folder=album.name)))[
        "framing"
    ] == "crop"
    scores = [[each["labels"][0]["cosine"] for each in told["pictures"]] for told in (crop, whole)]
    assert scores[0][-1] == scores[1][-1] and scores[0][0] != scores[1][0]


# --- folders ---


def kept(server, album) -> list[Path]:
    return sorted(Path(server.folder, "output", "internvl").glob(f"{album.name} *"))


def test_a_folder_by_its_name_or_whole_path(server, album):
    told = shown(server.run(classify(folder=album.name)))
    assert [each["name"] for each in told["pictures"]] == [f"{number}.png" for number in range(6)]
    again = shown(server.run(classify(folder=f' "{album}" ')))
    assert again == told and len(kept(server, album)) == 1
    results = Path(server.folder, "output", album.name)
    results.mkdir()
    Image.new("RGB", (30, 30)).save(results / "made.png")
    below = Path(album, "below")
    below.mkdir()
    Image.new("RGB", (30, 30)).save(below / "other.png")
    assert [each["name"] for each in shown(server.run(classify(folder=f"{album.name}/below")))["pictures"]] == [
        "other.png"
    ]


def test_a_folder_in_the_output_folder(server):
    results = Path(server.folder, "output", "results")
    results.mkdir()
    Image.new("RGB", (30, 30)).save(results / "made.png")
    assert shown(server.run(rank(folder="results")))["ranked"][0]["name"] == "made.png"


@pytest.fixture
def only_comfyui_folders(server):
    """The switch that whoever runs the server has."""
    file = Path(server.folder, "user", "__mulan_nodes", "settings.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('\ufeff{"only_comfyui_folders": true}', "utf-8")
    yield file
    file.unlink()


def test_only_comfyui_s_own_folders_where_the_server_says_so(server, album, tmp_path, only_comfyui_folders):
    """A folder elsewhere, a link to it, and a link among the images; what is inside is read as ever."""
    shutil.copy(album / "1.png", tmp_path / "secret.png")
    (album / "link").symlink_to(tmp_path, target_is_directory=True)
    for folder in (str(tmp_path), f"{album.name}/link", f"{album.name}/link/../../.."):
        with pytest.raises(GraphRejected, match="outside of ComfyUI's input, output and temp folders"):
            server.run(classify(folder=folder))
    assert len(shown(server.run(classify(folder=str(album))))["pictures"]) == 6
    (album / "9.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(GraphRejected, match=r"9\.png is outside of ComfyUI's"):
        server.run(classify(folder=album.name))
    only_comfyui_folders.write_text("{")
    with pytest.raises(GraphRejected, match=r"settings\.json cannot be read"):
        server.run(classify(folder=album.name))
    only_comfyui_folders.write_text('{"only_comfyui_folders": "yes"}')
    with pytest.raises(GraphRejected, match=r"settings\.json must be"):
        server.run(classify(folder=album.name))
    only_comfyui_folders.write_text('{"only_comfyui_folders": false}')
    assert len(shown(server.run(classify(folder=f"{album.name}/link")))["pictures"]) == 1


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud83d", "~", "\\\\server\\share", "CON"])
def test_what_is_no_folder_is_not_found(server, name):
    with pytest.raises(GraphRejected, match="was not found in"):
        server.run(classify(folder=name))


def test_a_folder_is_looked_at_again_when_it_changes(server, album):
    graph = rank(folder=album.name, top_k=0)
    before = shown(server.run(graph))
    Image.fromarray(np.asarray(Image.open(album / "0.png"))[:, ::-1]).save(album / "1.png")
    (album / "2.png").rename(album / "22.png")
    after = shown(server.run(graph))
    scores = [{each["name"]: each["score"] for each in told["ranked"]} for told in (before, after)]
    assert (
        scores[0]["0.png"] == scores[1]["0.png"]
        and scores[0]["2.png"] == scores[1]["22.png"]
        and scores[0]["1.png"] != scores[1]["1.png"]
    )


def test_a_damaged_store_is_made_anew(server, album):
    graph = rank(folder=album.name, top_k=0)
    before = shown(server.run(graph))
    (file,) = kept(server, album)
    file.write_bytes(file.read_bytes()[:200])
    graph["3"]["inputs"]["threshold"] = -0.99  # else ComfyUI has the answer already
    assert shown(server.run(graph)) == before and file.stat().st_size > 200


def test_a_picture_that_cannot_be_read_is_told_and_the_others_are_done(server, album):
    (album / "3.png").write_bytes(b"no picture")
    (album / "5.png").write_bytes(b"")
    for told, of in (
        (shown(server.run(classify(folder=album.name))), "pictures"),
        (shown(server.run(rank(folder=album.name))), "ranked"),
    ):
        assert len(told[of]) == 4
        assert told["unreadable"] == [
            {"name": "3.png", "reason": "it is not an image that can be read"},
            {"name": "5.png", "reason": "it is empty"},
        ]


# --- rank ---


def test_rank_puts_a_batch_in_order(server):
    graph = preview(rank(5, top_k=0), scores=1, order=2, names=3, json=4) | {
        "images": node("PreviewImage", images=["3", 0])
    }
    outputs = server.run(graph | {"all": node("PreviewImage", images=["2", 0])})
    told = shown(outputs)
    assert told["task"] == "rank" and told["of"] == 5 and told["query"] == {"texts": ["красный круг"], "pictures": 0}
    scores = [each["score"] for each in told["ranked"]]
    assert scores == sorted(scores, reverse=True) and sorted(each["position"] for each in told["ranked"]) == list(
        range(5)
    )
    order = [int(value) for value in values(outputs, "order")]
    assert order == [each["position"] for each in told["ranked"]]
    assert [float(value) for value in values(outputs, "scores")] == pytest.approx(scores, abs=1e-4)
    assert values(outputs, "names") == [f"picture {number + 1}" for number in order]
    before, after = ([decode(file) for file in outputs.files[id]] for id in ("all", "images"))
    assert all(np.array_equal(picture, before[number]) for picture, number in zip(after, order, strict=True))


def test_top_k_and_threshold(server):
    every = shown(server.run(rank(5, top_k=0)))["ranked"]
    assert shown(server.run(rank(5, top_k=2)))["ranked"] == every[:2]
    middle = (every[1]["score"] + every[2]["score"]) / 2
    assert shown(server.run(rank(5, threshold=middle)))["ranked"] == every[:2]


def test_where_nothing_is_left_what_follows_does_not_run(server):
    outputs = server.run(
        preview(rank(3, threshold=1.0), scores=1, names=3) | {"images": node("PreviewImage", images=["3", 0])}
    )
    assert shown(outputs)["ranked"] == [] and not {"images", "scores", "names"} & outputs.nodes.keys()


def test_a_folder_s_pictures_keep_their_sizes(server, album):
    outputs = server.run(rank(folder=album.name, top_k=3) | {"images": node("PreviewImage", images=["3", 0])})
    names = [each["name"] for each in shown(outputs)["ranked"]]
    found = [decode(file) for file in outputs.files["images"]]
    assert len(names) == 3 and all(
        np.array_equal(picture, np.asarray(Image.open(album / name)))
        for picture, name in zip(found, names, strict=True)
    )


def test_a_picture_finds_itself(server):
    graph = rank(4, query="", top_k=1)
    graph["3"]["inputs"]["query_image"] = ["22", 0]
    told = shown(server.run(graph))
    assert told["ranked"][0]["position"] == 2 and told["ranked"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert told["query"] == {"texts": [], "pictures": 1}


def test_text_and_picture_together_are_their_mean(server):
    def scores(**inputs):
        graph = rank(4, top_k=0, **inputs)
        return {each["position"]: each["score"] for each in shown(server.run(graph))["ranked"]}

    text, picture, both = scores(), scores(query="", query_image=["21", 0]), scores(query_image=["21", 0])
    ratios = [both[number] / (text[number] + picture[number]) for number in range(4)]
    assert ratios == pytest.approx([ratios[0]] * 4, rel=1e-2)


def test_a_list_of_pictures_is_ranked_as_one(server, album):
    graph = rank(top_k=1) | {
        "2": node("LoadImageDataSetFromFolder", folder=album.name),
        "images": node("PreviewImage", images=["3", 0]),
    }
    graph["3"]["inputs"]["image"] = ["2", 0]
    outputs = server.run(graph)
    assert shown(outputs)["of"] == 6 and len(outputs.files["images"]) == 1


# --- embed and compare ---


def embed(id: str = "3", **inputs) -> dict:
    return {id: node("InternVLEmbed", internvl=["1", 0], **inputs)}


def test_embeddings_rank_as_their_pictures(server):
    direct = shown(server.run(rank(4, top_k=0)))["ranked"]
    graph = rank(embeddings=["4", 0], top_k=0) | pictures(4) | embed("4", image=["2", 0])
    assert shown(server.run(graph))["ranked"] == direct


def test_texts_are_ranked_by_a_picture(server):
    graph = rank(query="", query_image=["2", 0], embeddings=["4", 0]) | pictures(1) | embed("4", texts=LABELS)
    outputs = server.run(preview(graph, names=3) | {"images": node("PreviewImage", images=["3", 0])})
    assert sorted(values(outputs, "names")) == sorted(LABELS.split("\n")) and "images" not in outputs.nodes
    best = shown(server.run(classify(1, scores="independent", framing="whole", top_k=10)))["pictures"][0]["labels"]
    assert values(outputs, "names") == [label["label"] for label in best]


def test_videos_are_found_by_an_image_of_theirs(server):
    """A video of equal frames is as its frame; a list of videos is ranked, of each only so many frames are seen."""
    colors = (0x3366AA, 0xAA3311, 0x11AA33)
    graph = {
        "1": loader(),
        **{f"2{i}": node("EmptyImage", width=48, height=32, batch_size=4, color=c) for i, c in enumerate(colors)},
        **{f"3{i}": node("CreateVideo", images=[f"2{i}", 0], fps=8.0) for i in range(3)},
        "40": node("CreateList", **{f"inputs.input{i}": [f"3{i}", 0] for i in range(3)}),
        "41": node("ImageFromBatch", image=["21", 0], batch_index=0, length=1),
        **embed("4", video=["40", 0], frames=2),
        "3": node("InternVLRank", internvl=["1", 0], query_image=["41", 0], embeddings=["4", 0], top_k=0),
    }
    outputs = server.run(graph)
    ranked = shown(outputs)["ranked"]
    assert ranked[0]["name"] == "video 2" and ranked[0]["score"] == pytest.approx(1, abs=1e-5) and len(ranked) == 3
    told = shown(outputs, "4")
    assert told["kind"] == "video" and told["names"] == ["video 1", "video 2", "video 3"]


def test_what_an_example_shows_is_found_among_boxes(server):
    """Two halves of two images as boxes: the half that the example shows is the best in each, with 1 if equal."""
    left, right = 0x3366AA, 0xAA3311
    halves = {"spacing_width": 0, "spacing_color": "white", "direction": "right", "match_image_size": False}
    boxes = [{"x": x, "y": 0, "width": 32, "height": 32, "label": label} for x, label in ((0, "left"), (32, "right"))]
    graph = {
        "1": loader(),
        "20": node("EmptyImage", width=32, height=32, batch_size=2, color=left),
        "21": node("EmptyImage", width=32, height=32, batch_size=2, color=right),
        "22": node("ImageStitch", image1=["20", 0], image2=["21", 0], **halves),
        "23": node("ImageFromBatch", image=["22", 0], batch_index=0, length=1),
        "3": node(
            "InternVLFindAlike",
            internvl=["1", 0],
            image=["22", 0],
            bboxes={"__value__": boxes},
            example=["23", 0],
            example_bboxes={"__value__": [boxes[1]]},
            threshold=0.0,
            top_k=1,
            margin=0,
        ),
    }
    told = shown(server.run(graph))
    found = [[(thing["label"], round(thing["score"], 4)) for thing in frame["objects"]] for frame in told["frames"]]
    assert found == [[("right", 1.0)]] * 2
    by_point = graph["3"]["inputs"] | {
        "example_bboxes": {"__value__": [{"x": 0, "y": 0, "width": 64, "height": 32}, *boxes]},
        "example_points": '{"x": 40, "y": 9}',
    }
    white = node("SolidMask", value=1.0, width=32, height=32)
    by_mask = {name: value for name, value in graph["3"]["inputs"].items() if name != "example_bboxes"} | {
        "example_mask": ["25", 0]
    }
    black = node("SolidMask", value=0.0, width=64, height=32)
    right_half = node("MaskComposite", destination=["24", 0], source=["26", 0], x=32, y=0, operation="add")
    for marked in (by_point, by_mask):
        again = graph | {"24": black, "25": right_half, "26": white, "3": node("InternVLFindAlike", **marked)}
        assert shown(server.run(again))["frames"] == told["frames"]
    for wrong, message in (
        ({"example_bboxes": {"__value__": [{"x": 90, "y": 0, "width": 5, "height": 5}]}}, "nothing is marked"),
        ({"example_points": '{"x": 4, "y": 9}'}, "none of example_bboxes is under"),
    ):
        with pytest.raises(GraphFailed, match=f"example_.*: {message}"):
            server.run(graph | {"3": node("InternVLFindAlike", **graph["3"]["inputs"] | wrong)})


def test_an_example_is_looked_for_in_a_folder(server, album):
    """Core's list of images, of any sizes: each has its own boxes, here one around all of it."""
    whole = {"__value__": [{"x": 0, "y": 0, "width": 4096, "height": 4096}]}
    graph = {
        "1": loader(),
        "2": node("LoadImageDataSetFromFolder", folder=album.name),
        "20": node("EmptyImage", width=32, height=32, batch_size=1, color=0x3366AA),
        "3": node(
            "InternVLFindAlike",
            **{"internvl": ["1", 0], "image": ["2", 0], "bboxes": whole, "example": ["20", 0]},
            **{"threshold": 0.0, "top_k": 1, "margin": 0},
        ),
        "4": node("PreviewAny", source=["3", 2]),
    }
    assert [int(text) for text in server.run(graph).nodes["4"]["text"]] == [1] * 6


def test_tracks_know_what_left_by_its_looks(server):
    """Blue left and red right, later red left and blue right: by looks the names change sides with the colors."""
    halves = {"spacing_width": 0, "spacing_color": "white", "direction": "right", "match_image_size": False}
    left, right = ({"x": x, "y": 0, "width": 32, "height": 32, "label": "car"} for x in (0, 32))
    frames = [[left], [], [], [left, right]]
    track = dict(min_overlap=0.2, max_gap=3, min_length=1, fill=True, smooth=0.0)
    graph = {
        "1": loader(),
        "20": node("EmptyImage", width=32, height=32, batch_size=2, color=0x3366AA),
        "21": node("EmptyImage", width=32, height=32, batch_size=2, color=0xAA3311),
        "22": node("ImageStitch", image1=["20", 0], image2=["21", 0], **halves),
        "23": node("ImageStitch", image1=["21", 0], image2=["20", 0], **halves),
        "24": node("BatchImagesNode", **{"images.image0": ["22", 0], "images.image1": ["23", 0]}),
        "3": node("VisionLLMTrackDetections", image=["24", 0], bboxes={"__value__": frames}, **track),
    }
    by_motion = shown(server.run(graph))["frames"]
    assert [len(frame["objects"]) for frame in by_motion] == [1, 1, 1, 2]
    assert [(one["label"], one["box"][0]) for one in by_motion[3]["objects"]] == [("car 1", 0), ("car 2", 32)]
    looking = graph["3"]["inputs"] | {"internvl": ["1", 0], "max_gap": 0}
    by_looks = shown(server.run(graph | {"3": node("VisionLLMTrackDetections", **looking)}))["frames"]
    assert [len(frame["objects"]) for frame in by_looks] == [1, 0, 0, 2]
    assert [(one["label"], one["box"][0]) for one in by_looks[3]["objects"]] == [("car 1", 32), ("car 2", 0)]


def test_embed_tells_what_it_has(server, album):
    outputs = server.run(
        {
            "1": loader(),
            **embed(folder=album.name),
            **embed("4", texts="a\nb\n\na"),
            **pictures(2),
            **embed("5", image=["2", 0]),
        }
    )
    told = [shown(outputs, id) for id in "345"]
    assert [each["kind"] for each in told] == ["picture", "text", "picture"] and told[1]["names"] == ["a", "b", "a"]
    assert {each["length"] for each in told} == {24} and len({each["identity"] for each in told}) == 1
    assert told[0]["names"] == [f"{number}.png" for number in range(6)] and told[2]["names"] == [
        "picture 1",
        "picture 2",
    ]


def test_compare_shows_a_matrix(server):
    graph = {
        "1": loader(),
        **pictures(3),
        **embed("4", image=["2", 0]),
        **embed("5", texts=LABELS),
        "3": node("InternVLCompare", a=["4", 0], b=["5", 0], pairs=4),
    }
    outputs = server.run({**graph, "6": node("PreviewImage", images=["3", 0])})
    told = shown(outputs)
    assert told["task"] == "compare" and told["kinds"] == ["picture", "text"] and np.shape(told["scores"]) == (3, 4)
    assert told["rows"] == ["picture 1", "picture 2", "picture 3"] and told["columns"] == LABELS.split("\n")
    assert told["pairs"][0]["score"] == np.max(told["scores"]) and len(told["pairs"]) == 4
    assert told["scores"][told["pairs"][0]["row"]][told["pairs"][0]["column"]] == told["pairs"][0]["score"]
    assert len(outputs.files["6"]) == 1 and outputs.nodes["3"]["images"], "the node shows it too"


def test_compare_with_itself_tells_each_pair_once(server):
    graph = {"1": loader(), **embed("4", texts="a\nb\nc"), "3": node("InternVLCompare", a=["4", 0])}
    told = shown(server.run(graph))
    assert {(pair["row"], pair["column"]) for pair in told["pairs"]} == {(0, 1), (0, 2), (1, 2)}
    assert np.diag(told["scores"]) == pytest.approx([1, 1, 1], abs=1e-5)


def test_compare_of_one_says_that_there_is_no_pair(server):
    alone = asking("InternVLEmbed", texts="a cat")
    graph = {"1": alone["1"], "4": alone["3"], "3": node("InternVLCompare", a=["4", 0])}
    outputs = server.run(graph)
    assert shown(outputs)["pairs"] == [] and outputs.nodes["3"]["mulan_text"][0].startswith("there is one embedding")


# --- video ---


def video_file(server, name: str, count: int) -> str:
    with av.open(str(Path(server.folder, "input", name)), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(count):
            noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    return name


def video(**inputs) -> dict:
    return asking("InternVLVideoClassify", **{"labels": LABELS, **inputs})


@pytest.mark.parametrize("count", [30, 1])
def test_a_video_file_is_classified(server, count):
    graph = video(video=["4", 0]) | {"4": node("LoadVideo", file=video_file(server, f"film{count}.mp4", count))}
    outputs = server.run(preview(graph, label=0, score=1, labels=2, json=3))
    told = shown(outputs)
    assert told["task"] == "classify video" and told["frames"] == 8 and len(told["video"]) == 4
    assert values(outputs, "label") == [told["video"][0]["label"]] and json.loads(values(outputs, "json")[0]) == told
    assert float(values(outputs, "score")[0]) == pytest.approx(told["video"][0]["softmax"], rel=1e-4)
    assert values(outputs, "labels") == [", ".join(label["label"] for label in told["video"])]


def test_frames_are_a_video_too(server):
    frames = video(image=["2", 0], frames=3) | pictures(3)
    made = video(video=["4", 0], frames=3) | pictures(3) | {"4": node("CreateVideo", images=["2", 0], fps=8.0)}
    told = shown(server.run(frames))
    assert shown(server.run(made)) == told and told["frames"] == 3
    single = shown(server.run(classify(1, top_k=5)))["pictures"][0]["labels"]
    alone = shown(server.run(video(image=["2", 0]) | pictures(1)))["video"]
    assert [label["label"] for label in alone] == [label["label"] for label in single]
    assert [label["cosine"] for label in alone] == pytest.approx([label["cosine"] for label in single], abs=1e-5)


def test_a_video_is_the_mean_of_its_frames(server):
    def cosines(labels):
        return {label["label"]: label["cosine"] for label in labels}

    frames = [cosines(each["labels"]) for each in shown(server.run(classify(3)))["pictures"]]
    whole = cosines(shown(server.run(video(image=["2", 0], frames=3) | pictures(3)))["video"])
    lengths = [sum(frame[label] for frame in frames) / 3 / whole[label] for label in whole]
    assert lengths == pytest.approx([lengths[0]] * 4, rel=1e-3) and lengths[0] <= 1
    assert whole != frames[0]


# --- the model ---


def test_the_loader_lists_what_can_serve(server, models):
    (models / "text_encoders" / "Another").mkdir(exist_ok=True)
    save_file({"x": torch.zeros(1)}, models / "text_encoders" / "Another" / "model.safetensors")
    (models / "text_encoders" / "Another" / "config.json").write_text("{}", "utf-8")
    inputs = server.object_info("InternVLLoader")["input"]["required"]
    listed = inputs["checkpoint"][1]["options"]
    assert {FOLDER, ALONE, VISION, IN_ENCODERS} <= set(listed) and "Another" not in listed
    assert {INSIDE, IN_ENCODERS, TINY_ENCODER} <= set(inputs["text_encoder"][1]["options"])


@pytest.mark.parametrize(
    "model",
    [
        loader(mode="G"),
        loader(ALONE),
        loader(IN_ENCODERS),
        loader(VISION, TINY_ENCODER),
        loader(VISION, TINY_ENCODER, mode="G"),
        loader(precision="bf16"),
        loader(precision="fp32", device="cpu"),
    ],
)
def test_checkpoints_modes_precisions_and_devices(server, model):
    told = shown(server.run(classify(2, model)))
    assert len(told["pictures"]) == 2 and told["mode"] == model["inputs"].get("mode", "C")


def test_modes_differ_and_do_not_mix(server):
    of_c, of_g = (
        shown(server.run(classify(1, model, scores="independent")))["pictures"][0]["labels"]
        for model in (loader(), loader(mode="G"))
    )
    assert of_c != of_g
    graph = {
        "1": loader(),
        "10": loader(mode="G"),
        **pictures(1),
        **embed("4", image=["2", 0]),
        "5": node("InternVLEmbed", internvl=["10", 0], image=["2", 0]),
    }
    for question in (
        node("InternVLCompare", a=["4", 0], b=["5", 0]),
        node("InternVLRank", internvl=["1", 0], query="x", embeddings=["5", 0]),
    ):
        with pytest.raises(GraphFailed, match="made by another model, mode or precision"):
            server.run({**graph, "3": question})


MULAN = node(
    "MuLanLoader",
    text_encoder=TINY_ENCODER,
    adapter="tiny_sd15_adapter.safetensors",
    prompt_style="default",
    remember_prompts=False,
)


def loads(server, what: str) -> int:
    """How often such a model went to its device."""
    return server.log.read_text("utf-8", "replace").count(f"Requested to load {what}")


def test_mulan_s_clip_gives_the_same_and_no_second_copy(server):
    own = shown(server.run(classify(2, loader(VISION, TINY_ENCODER), scores="independent")))
    server.free()
    time.sleep(2)
    before = loads(server, "MulanTextEncoder")
    graph = classify(2, loader(VISION, clip=["8", 1]), scores="independent") | {
        "8": MULAN,
        "9": node("CLIPTextEncode", clip=["8", 1], text="красный круг"),
        "90": node("PreviewAny", source=["9", 0]),
    }
    outputs = server.run(graph)
    assert shown(outputs)["pictures"] == own["pictures"] and "90" in outputs.nodes
    assert loads(server, "MulanTextEncoder") == before + 1


def test_two_loaders_and_two_graphs_share_one_copy(server):
    server.free()
    time.sleep(2)
    before = loads(server, "ContrastiveModel")
    for number in (1, 2):
        graph = pictures(2)
        for id in (f"{number}71", f"{number}72"):
            graph |= {
                id: loader(precision="fp32"),
                f"{id}3": node("InternVLRank", internvl=[id, 0], query=f"thing {id}", image=["2", 0]),
            }
        assert len(server.run(graph).nodes) == 2
    assert loads(server, "ContrastiveModel") == before + 1


def test_free_gives_the_model_back_and_the_next_graph_loads_again(server):
    server.run(classify(1, labels="once"))
    before = loads(server, "ContrastiveModel")
    server.run(classify(1, labels="twice"))
    assert loads(server, "ContrastiveModel") == before
    server.free()
    time.sleep(2)
    assert shown(server.run(classify(1, labels="again")))["pictures"]
    assert loads(server, "ContrastiveModel") == before + 1


def many(server, count: int) -> Path:
    folder = Path(server.folder, "input", f"many {time.monotonic_ns()}")
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            folder / f"{number}.bmp"
        )
    return folder


def test_a_folder_can_be_stopped_and_goes_on_where_it_was(server):
    folder = many(server, 700)
    graph, steps = rank(folder=str(folder)), []

    def stop(node_id, step, of):
        if node_id == "3" and of == 700:
            steps.append(step)
            if step > 300 and len(steps) > 2:
                server.interrupt()

    with pytest.raises(GraphFailed) as failure:
        server.wait(server.post(graph), stop)
    assert failure.value.exception == "interrupted" and failure.value.node == "3" and steps[-1] < 700
    (file,) = Path(server.folder, "output", "internvl").glob(f"{folder.name} *")
    assert file.stat().st_size > 256 * 24 * 4
    assert shown(server.run(graph))["of"] == 700


def test_progress_of_a_folder_only_grows(server):
    folder, steps = many(server, 600), []
    server.run(
        {"1": loader(), **embed(folder=str(folder))},
        progress=lambda id, step, of: steps.append((step, of)) if id == "3" else None,
    )
    assert (
        {of for _, of in steps} == {600}
        and [step for step, _ in steps] == sorted(step for step, _ in steps)
        and steps[-1] == (600, 600)
    )


# --- errors ---

REJECTED = {
    "no labels": (classify(1, labels=" \n"), "3", ["labels: there is no label", "one per line"]),
    "no labels for a video": (video(labels="", image=["2", 0]) | pictures(1), "3", ["labels: there is no label"]),
    "a template without its place": (
        classify(1, templates="own", own_templates="a photo"),
        "3",
        ["own_templates: the template 'a photo' has no {c}"],
    ),
    "templates of no language": (
        classify(1, templates="Klingon"),
        "3",
        ["templates: 'Klingon' is not one of none, English (paper)"],
    ),
    "nothing to classify": (classify(), "3", ["image or folder: none of them is given", "exactly one"]),
    "pictures and a folder": (classify(1, folder="x"), "3", ["image or folder: more than one is given"]),
    "a folder that is not there": (
        classify(folder="nowhere at all"),
        "3",
        ["folder: 'nowhere at all' was not found in", "Enter an absolute path"],
    ),
    "nothing to look for": (rank(1, query=" "), "3", ["query: enter what to look for, or connect query_image"]),
    "nothing to rank": (rank(), "3", ["image, embeddings or folder: none of them is given"]),
    "nothing to embed": (asking("InternVLEmbed", texts=" "), "3", ["image, texts, video or folder: none"]),
    "texts and pictures": (
        asking("InternVLEmbed", 1, texts="a"),
        "3",
        ["image, texts, video or folder: more than one"],
    ),
    "no video": (video(), "3", ["video, image: connect exactly one of them"]),
    "a file of something else": (
        classify(1, loader("wrong.safetensors")),
        "1",
        ["wrong.safetensors (in ", "expected InternVL-C or -G", "OpenGVLab/InternVL-14B"],
    ),
    "no text encoder": (classify(1, loader(VISION)), "1", ["only InternVL's vision side", "models/text_encoders"]),
    "mode G of a C": (classify(1, loader(ALONE, mode="G")), "1", ["holds only InternVL-C", "choose mode C"]),
    "a checkpoint that is gone": (
        classify(1, loader("gone.safetensors")),
        "1",
        ["'gone.safetensors' is not in", "internvl"],
    ),
    "another model's text encoder": (
        classify(1, loader(FOLDER, TINY_ENCODER)),
        "1",
        ["hidden size 64", "tiny_internvl.safetensors", "hidden size 128"],
    ),
    "a text encoder that is none": (
        classify(1, loader(VISION, "wrong_empty.safetensors")),
        "1",
        ["wrong_empty.safetensors"],
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_cannot_be_asked_is_told_before_anything_loads(server, name):
    graph, id, words = REJECTED[name]
    with pytest.raises(GraphRejected) as refusal:
        server.run(graph)
    details = refusal.value.node_errors[id]["errors"][0]["details"]
    for word in words:
        assert word in details, details


def test_an_empty_folder_says_what_it_looked_for(server, album):
    for file in album.iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(GraphRejected) as refusal:
        server.run(classify(folder=album.name))
    details = refusal.value.node_errors["3"]["errors"][0]["details"]
    assert f"folder: no image in {album}" in details and ".png" in details


FAILED = {
    "connected labels": (
        classify(1, labels=["5", 0]) | {"5": node("PrimitiveString", value=" ")},
        "labels: there is no label",
    ),
    "a connected folder": (
        classify(folder=["5", 0]) | {"5": node("PrimitiveString", value="nowhere at all")},
        "folder: 'nowhere at all' was not found",
    ),
    "a connected query": (
        rank(1, query=["5", 0]) | {"5": node("PrimitiveString", value=" ")},
        "query: enter what to look for",
    ),
    **{
        f"an empty list as {name} of {kind}": (
            asking(kind, **{name: ["5", 0]}, **more) | {"5": node("FuzzList", expr="[]")},
            "none of them is given",
        )
        for kind, name, more in (
            ("InternVLEmbed", "video", {}),
            ("InternVLEmbed", "image", {}),
            ("InternVLRank", "embeddings", {"query": "a"}),
            ("InternVLZeroShotClassify", "image", {"labels": LABELS}),
        )
    },
    "a CLIP that is not MuLan's": (
        classify(1, loader(VISION, clip=["5", 1]))
        | {"5": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")},
        "connect a CLIP of the MuLan Loader",
    ),
}


@pytest.mark.parametrize("name", FAILED)
def test_what_goes_wrong_while_it_runs_says_the_field(server, name):
    graph, words = FAILED[name]
    with pytest.raises(GraphFailed) as failure:
        server.run(graph)
    assert words in failure.value.message, failure.value.message


def test_connected_labels_and_folders_work(server, album):
    graph = classify(labels=["5", 0], folder=["6", 0]) | {
        "5": node("PrimitiveString", value="a\nb"),
        "6": node("PrimitiveString", value=album.name),
    }
    told = shown(server.run(graph))
    assert told["labels"] == ["a", "b"] and len(told["pictures"]) == 6
