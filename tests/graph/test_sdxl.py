"""SDXL through the queue: its four kinds of adapter, the MODEL's size embedding, what becomes zeros, its own text node.
Weights are random.
"""

from __future__ import annotations

import numpy as np
import pytest

from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import GraphFailed
from mulan_nodes.tools.graphs import differ, picture

VARIANTS = ("embed_attnpool", "embed_textproj", "noembed_attnpool", "noembed_textproj")


@pytest.fixture(scope="module")
def base() -> dict:
    """text to image with an SDXL checkpoint, its VAE from the tiny SD1.5 one."""
    graph = graphs.load("mulan_text_to_image")
    graph["20"] = {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"},
        "_meta": {"title": "SDXL"},
    }
    graph = graphs.change(
        graph,
        "MuLan Loader",
        model=["20", 0],
        text_encoder="projecting.safetensors",
        adapter="random_sdxl_embed_textproj.safetensors",
    )
    graph = graphs.change(graph, "Negative prompt", text="red, blurry")
    return graphs.change(graph, "KSampler", steps=2)


@pytest.fixture(scope="module")
def plain(server, base) -> np.ndarray:
    return picture(server, base)


def sized(graph: dict, text_l: str = "一个红色的圆", **sizes) -> dict:
    """The prompt through the stock CLIPTextEncodeSDXL."""
    inputs = {
        "clip": ["2", 1],
        "width": 1024,
        "height": 1024,
        "crop_w": 0,
        "crop_h": 0,
        "target_width": 1024,
        "target_height": 1024,
        "text_g": "一个红色的圆",
        "text_l": text_l,
        **sizes,
    }
    return graphs.change(
        {**graph, "30": {"class_type": "CLIPTextEncodeSDXL", "inputs": inputs}}, "KSampler", positive=["30", 0]
    )


def test_the_four_adapters_draw_four_pictures(server, base):
    pictures = [
        picture(server, graphs.change(base, "MuLan Loader", adapter=f"random_sdxl_{variant}.safetensors"))
        for variant in VARIANTS
    ]
    for number, one in enumerate(pictures):
        assert np.isfinite(one).all()
        for other in pictures[:number]:
            assert differ(one, other) > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_size_embedding_comes_from_the_adapter_alone(variant, server, base):
    """An `embed` adapter changes the MODEL, the others return it as it came in."""
    ours = graphs.change(base, "MuLan Loader", adapter=f"random_sdxl_{variant}.safetensors")
    theirs = graphs.change(ours, "KSampler", model=["20", 0])
    assert (differ(picture(server, ours), picture(server, theirs)) > 0.1) == variant.startswith("embed")


def test_sizes_and_crops_reach_the_model_and_text_l_does_not_matter(server, base):
    first = picture(server, sized(base))
    assert not np.array_equal(picture(server, sized(base, width=256)), first)
    assert not np.array_equal(picture(server, sized(base, crop_w=512)), first)
    assert np.array_equal(picture(server, sized(base, text_l="")), first)
    assert np.array_equal(picture(server, sized(base, text_l="something else, " * 60)), first), (
        "windows that fill up text_g said something"
    )


def test_what_becomes_zeros(server, base, plain):
    """The three settings; an empty negative differs only where all of it is zeros, or its pooled vector."""

    def with_zeros(setting, negative="red, blurry"):
        return picture(
            server,
            graphs.change(graphs.change(base, "MuLan Loader", sdxl_zeros=setting), "Negative prompt", text=negative),
        )

    settings = "negative pooled", "all pooled, empty negative", "nothing"
    pictures = [with_zeros(setting) for setting in settings]
    assert np.array_equal(pictures[0], plain)
    assert (
        min(differ(pictures[0], pictures[1]), differ(pictures[0], pictures[2]), differ(pictures[1], pictures[2])) > 0.01
    )
    zeroed = with_zeros(settings[1], "")
    stock = {**base, "30": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["4", 0]}}}
    stock = graphs.change(graphs.change(stock, "KSampler", negative=["30", 0]), "MuLan Loader", sdxl_zeros=settings[1])
    assert np.array_equal(zeroed, picture(server, stock)), "an empty negative is what ConditioningZeroOut makes"


def test_a_lora_before_and_after_the_loader(server, base, plain):
    """The LoRA changes the very weights that the adapter replaces."""

    def lora(id, model):
        return {
            id: {
                "class_type": "LoraLoaderModelOnly",
                "inputs": {"model": model, "lora_name": "random_sdxl.safetensors", "strength_model": 1.0},
            }
        }

    before = picture(server, graphs.change({**base, **lora("30", ["20", 0])}, "MuLan Loader", model=["30", 0]))
    after = picture(server, graphs.change({**base, **lora("30", ["2", 0])}, "KSampler", model=["30", 0]))
    assert np.array_equal(before, after) and differ(before, plain) > 0.02
    assert np.array_equal(picture(server, graphs.change(base, "Save Image", filename_prefix="again")), plain), (
        "something stayed behind"
    )


def test_the_size_embedding_survives_modelsave(server, base, plain):
    """What the stock ModelSave wrote draws the same picture without the loader's MODEL output."""
    server.run(
        {
            **base,
            "30": {
                "class_type": "ModelSave",
                "inputs": {"model": ["2", 0], "filename_prefix": "diffusion_models/mulan_sdxl"},
            },
        }
    )
    saved = server.object_info("UNETLoader")["input"]["required"]["unet_name"]
    saved = saved[1]["options"] if saved[0] == "COMBO" else saved[0]
    (name,) = [name for name in saved if "mulan_sdxl" in name]
    graph = {**base, "30": {"class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": "default"}}}
    assert np.array_equal(picture(server, graphs.change(graph, "KSampler", model=["30", 0])), plain)


def test_a_long_prompt_is_several_windows(server, base, plain):
    assert differ(picture(server, graphs.change(base, "Prompt", text="ein roter Kreis, " * 40)), plain) > 0.1


def test_without_the_model_the_adapter_cannot_place_its_weights(server, base):
    graph = graphs.change(base, "KSampler", model=["20", 0])
    del graph["2"]["inputs"]["model"]
    with pytest.raises(GraphFailed, match="replaces weights of the SDXL model. Connect the checkpoint's MODEL"):
        server.run(graph)
    assert server.run(graphs.change(graph, "MuLan Loader", adapter="random_sdxl_noembed_textproj.safetensors")).images
