"""MuLan Word Maps through the queue: maps lie on the drawn shape, and what it refuses."""

from __future__ import annotations

import json

import pytest

from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import GraphFailed, decode
from mulan_nodes.tools.tinyworld import world

COLORS = {"en": ("red", "a big red circle"), "zh": ("红色的", "一个红色的大圆形"), "th": ("สีแดง", "วงกลมสีแดงขนาดใหญ่")}


@pytest.fixture(scope="module")
def base() -> dict:
    """Text to image, then the maps, and the masks as images."""
    inputs = {"model": ["2", 0], "clip": ["2", 1], "latent": ["6", 0], "image": ["7", 0]}
    return graphs.add(
        graphs.change(graphs.load("mulan_text_to_image"), "KSampler", steps=8),
        ("40", "MuLanWordMaps", {**inputs, "text": "", "words": "", "steps": 2}),
        ("41", "MaskToImage", {"mask": ["40", 1]}),
        ("42", "SaveImage", {"images": ["41", 0], "filename_prefix": "masks"}),
    )


def mapped(graph: dict, prompt: str, **inputs) -> dict:
    return graphs.change(graphs.change(graph, "Prompt", text=prompt), "MuLanWordMaps", text=prompt, **inputs)


def document(outputs) -> dict:
    return json.loads(outputs.nodes["40"]["text"][0])


@pytest.mark.parametrize("language", COLORS)
def test_the_color_s_map_lies_on_the_drawn_shape(language, server, base):
    word, prompt = COLORS[language]
    outputs = server.run(mapped(base, prompt, words=word))
    ((record,),) = document(outputs)["images"]
    shape = world.find_foreground(decode(outputs.files["8"][0]))
    assert len(outputs.files["42"]) == 1 and record["word"] == word and shape[record["y"], record["x"]]
    assert 0.1 < record["strength"] < 2 and 0 < record["area"] < 0.5


def test_every_word_of_every_image_has_a_mask_and_a_cell(server, base):
    graph = mapped(graphs.change(base, "Empty Latent Image", width=96, height=64, batch_size=2), "a (red:1.2) circle")
    outputs = server.run(graph)
    images = document(outputs)["images"]
    assert [[word["word"] for word in image] for image in images] == [["a", "red", "circle"]] * 2
    masks = [decode(file) for file in outputs.files["42"]]
    assert len(masks) == 6 and all(
        mask.shape == (64, 96, 3) and mask.min() == 0 and mask.max() == 255 for mask in masks
    )
    sheets = [decode(file) for file in outputs.files["40"]]
    assert len(sheets) == 2 and sheets[0].shape[1] > 4 * 96
    assert images[0] != images[1], "two images, two maps"


def test_strength_is_a_share_of_the_whole_prompt_s_however_many_words_there_are(server, base):
    """More words than are predicted at once; each is what it is alone."""
    prompt = "a big red circle on the left of my black house"
    words = ["circle", prompt, "a", "big", "red", "on", "the", "left", "of", "my", "black", "house", "big red circle"]
    told = document(server.run(mapped(base, prompt, words="\n".join(words))))["images"][0]
    strengths = {word["word"]: word["strength"] for word in told}
    assert strengths[prompt] == 1 and strengths["circle"] != 1 and min(strengths.values()) > 0, strengths
    (alone,) = document(server.run(mapped(base, prompt, words="big red circle")))["images"][0]
    assert alone["strength"] == pytest.approx(strengths["big red circle"], rel=1e-2)


def test_the_checkpoint_s_own_clip_and_sdxl(server, base):
    own = graphs.change(mapped(base, "a big red circle", words="red"), "MuLanWordMaps", clip=["1", 1])
    assert document(server.run(own))["images"][0][0]["strength"] > 0.1
    graph = _with_model(base, "CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")
    graph = graphs.change(
        graph, "MuLan Loader", text_encoder="projecting.safetensors", adapter="random_sdxl_embed_textproj.safetensors"
    )
    assert document(server.run(mapped(graph, "ein roter Kreis")))["images"][0][1]["word"] == "roter"


def test_nothing_of_it_stays_in_the_model(server, base):
    """An image drawn after the maps of another is the one drawn before them."""
    graph = graphs.change(mapped(base, "a red star"), "KSampler", seed=77)
    plain = {id: node for id, node in graph.items() if int(id) < 40}
    before = server.run(plain).files["8"]
    server.run(graphs.change(graph, "KSampler", seed=78))
    assert server.run(plain).files["8"] == before


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"words": "blue"}, "words: 'blue' is not in the prompt"),
        ({"text": " ,."}, "text: there are no words in the prompt"),
        ({"image": ["50", 0]}, "image: got 3 images for 1 latents"),
        ({"latent": ["51", 0]}, "latent: it has 16 channels, and the connected MODEL reads 4"),
    ],
)
def test_what_cannot_be_mapped_is_refused(inputs, message, server, base):
    graph = graphs.add(
        mapped(base, "a red star"),
        ("50", "EmptyImage", {"width": 64, "height": 64, "batch_size": 3, "color": 0}),
        ("51", "EmptySD3LatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        **{f"MuLanWordMaps_{name}": value for name, value in inputs.items()},
    )
    with pytest.raises(GraphFailed) as failure:
        server.run(graph)
    assert failure.value.node_class == "MuLanWordMaps" and message in failure.value.message


def test_a_model_that_does_not_tell_is_refused(server, base):
    graph = _with_model(base, "UNETLoader", unet_name="PixArt-XL-2-1024-MS.safetensors", weight_dtype="default")
    graph = graphs.change(graph, "MuLan Loader", text_encoder="random_wide.safetensors", adapter="pixart.pth")
    graph = graphs.change(graphs.change(graph, "KSampler", steps=1), "Empty Latent Image", width=384, height=384)
    with pytest.raises(GraphFailed, match="does not tell what its cross-attention returns"):
        server.run(mapped(graph, "a red star", words="red"))


def _with_model(graph: dict, loader: str, **inputs) -> dict:
    return graphs.change(graphs.add(graph, ("20", loader, inputs)), "MuLan Loader", model=["20", 0])
