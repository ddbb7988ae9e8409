"""MuLan's CLIP among the stock text nodes, through the queue of a real ComfyUI server."""

from __future__ import annotations

import numpy as np
import pytest

from mulan_nodes.tools import graphs
from mulan_nodes.tools.graphs import add, differ, picture

PROMPT = "a big red star"
ENCODER, ADAPTER = "tiny_internvl.safetensors", "tiny_sd15_adapter.safetensors"


@pytest.fixture(scope="module")
def base() -> dict:
    return graphs.change(graphs.load("mulan_text_to_image"), "Prompt", text=PROMPT)


@pytest.fixture(scope="module")
def plain(server, base) -> np.ndarray:
    return picture(server, base)


def encode(id: str, text: str, clip=("2", 1)) -> tuple[str, str, dict]:
    return id, "CLIPTextEncode", {"clip": list(clip), "text": text}


def test_same_graph_same_picture_other_seed_other_picture(server, base, plain):
    again = picture(server, graphs.change(base, "Save Image", filename_prefix="again"))
    assert np.array_equal(again, plain)
    assert differ(picture(server, graphs.change(base, "KSampler", seed=2)), plain) > 0.5


def test_empty_prompts(server, base):
    assert np.isfinite(picture(server, graphs.change(base, "Prompt", text=""))).all()


def test_weights_act_and_a_weight_of_one_does_nothing(server, base, plain):
    assert np.array_equal(picture(server, graphs.change(base, "Prompt", text="a big (red:1.0) star")), plain)
    heavy = picture(server, graphs.change(base, "Prompt", text="a big (red:3.0) star"))
    assert np.isfinite(heavy).all() and differ(heavy, plain) > 0.1


def test_escaped_brackets_are_text(server, base):
    """`\\(` reaches the encoder as a bracket and weighs nothing: the same in both styles."""
    ours = picture(server, graphs.change(base, "Prompt", text=r"a big \(red\) star"))
    upstream = graphs.change(
        graphs.change(base, "MuLan Loader", prompt_style="upstream"), "Prompt", text="a big (red) star"
    )
    assert differ(ours, picture(server, upstream)) < 0.5


def test_a_text_longer_than_one_window(server, base, plain):
    long = picture(server, graphs.change(base, "Prompt", text=", ".join([PROMPT] * 40)))
    assert np.isfinite(long).all() and differ(long, plain) > 0.1


def test_batch(server, base):
    images = server.run(graphs.change(base, "Empty Latent Image", batch_size=3)).images
    assert len(images) == 3 and differ(images[0].astype(float), images[1].astype(float)) > 0.5


def test_negative_output_differs_from_clip_only_by_the_prefix(server, base):
    """The same words on both outputs give different contexts; an empty negative gives the same."""
    negative = graphs.change(base, "Negative prompt", text="a small blue circle")
    through_clip = graphs.change(negative, "Negative prompt", clip=["2", 1])
    assert differ(picture(server, negative), picture(server, through_clip)) > 0.01
    assert np.array_equal(picture(server, base), picture(server, graphs.change(base, "Negative prompt", clip=["2", 1])))


OTHER = encode("20", "a small blue circle")
CONDITIONING = {
    "concat": [("21", "ConditioningConcat", {"conditioning_to": ["3", 0], "conditioning_from": ["20", 0]})],
    "average": [
        (
            "21",
            "ConditioningAverage",
            {"conditioning_to": ["3", 0], "conditioning_from": ["20", 0], "conditioning_to_strength": 0.5},
        )
    ],
    "zero out": [("21", "ConditioningZeroOut", {"conditioning": ["3", 0]})],
    "set last layer": [
        ("22", "CLIPSetLastLayer", {"clip": ["2", 1], "stop_at_clip_layer": -2}),
        encode("21", PROMPT, ("22", 0)),
    ],
}


@pytest.mark.parametrize("kind", CONDITIONING)
def test_conditioning_maths(kind, server, base, plain):
    result = picture(server, add(base, OTHER, *CONDITIONING[kind], KSampler_positive=["21", 0]))
    assert np.isfinite(result).all() and differ(result, plain) > 0.1


def test_stock_clip_on_the_negative_side(server, base):
    """120 rows of context against the checkpoint's own 77."""
    assert np.isfinite(picture(server, graphs.change(base, "Negative prompt", clip=["1", 1], text="blue"))).all()


def test_clip_save_round_trip(server, base, plain):
    """What the stock CLIPSave writes is a text encoder and an adapter for the loader, and draws the same picture."""
    server.run(add(base, ("20", "CLIPSave", {"clip": ["2", 1], "filename_prefix": "clip/mulan"})))
    (saved,) = [name for name in options(server, "text_encoder") if name.startswith("mulan_")]
    assert np.array_equal(picture(server, graphs.change(base, "MuLan Loader", text_encoder=saved)), plain)


@pytest.mark.parametrize(
    "choice",
    ({"text_encoder": "Sharded-safetensors"}, {"text_encoder": "Sharded-bin"}, {"adapter": "as_published.pth"}),
)
def test_files_as_published_draw_the_same_picture(choice, server, base, plain):
    assert np.array_equal(picture(server, graphs.change(base, "MuLan Loader", **choice)), plain)


def test_a_sharded_checkpoint_is_offered_once_as_its_folder(server):
    assert [name for name in options(server, "text_encoder") if name.startswith("Sharded-bin")] == ["Sharded-bin"]


def test_upstream_style_draws_the_same_for_a_plain_prompt(server, base, plain):
    assert np.array_equal(picture(server, graphs.change(base, "MuLan Loader", prompt_style="upstream")), plain)


def test_on_the_cpu(server, base, plain):
    assert differ(picture(server, graphs.change(base, "MuLan Loader", device="cpu")), plain) < 2.0


def test_sd21(server, base):
    """The family is read from the adapter; the checkpoint has neither CLIP nor VAE of its own."""
    graph = add(base, ("20", "CheckpointLoaderSimple", {"ckpt_name": "random_sd21.safetensors"}))
    graph = graphs.change(graph, "MuLan Loader", model=["20", 0], adapter="random_sd21.safetensors")
    assert np.isfinite(picture(server, graph)).all()


def test_without_a_model_the_clip_serves_any_model(server, base, plain):
    graph = graphs.change(base, "KSampler", model=["1", 0])
    del graph["2"]["inputs"]["model"]
    assert np.array_equal(picture(server, graph), plain)


def options(server, name: str) -> list[str]:
    info = server.object_info("MuLanLoader")["input"]
    declared = {**info["required"], **info["optional"]}[name]
    return declared[1]["options"] if declared[0] == "COMBO" else declared[0]
