"""PixArt alpha and sigma through the queue, and the whole MuLan transformer. Weights are random."""

from __future__ import annotations

import numpy as np
import pytest

from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import GraphFailed
from mulan_nodes.tools.graphs import differ, picture

WHOLE = "none (a whole MuLan PixArt model)"


@pytest.fixture(scope="module")
def base() -> dict:
    """text to image with a PixArt transformer; below 384 pixels ComfyUI fails on its positions."""
    graph = graphs.load("mulan_text_to_image")
    graph["20"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "PixArt-XL-2-1024-MS.safetensors", "weight_dtype": "default"},
    }
    graph = graphs.change(
        graph, "MuLan Loader", model=["20", 0], text_encoder="random_wide.safetensors", adapter="pixart.pth"
    )
    return graphs.change(graphs.change(graph, "KSampler", steps=1), "Empty Latent Image", width=384, height=384)


@pytest.fixture(scope="module")
def plain(server, base) -> np.ndarray:
    return picture(server, base)


def test_alpha_and_sigma_read_the_prompt_through_the_adapter(server, base, plain):
    for graph in (base, graphs.change(base, "UNETLoader", unet_name="PixArt-Sigma-XL-2-1024-MS.safetensors")):
        ours = picture(server, graph)
        assert np.isfinite(ours).all()
        assert (
            differ(ours, picture(server, graphs.change(graph, "Prompt", text="ein roter Kreis und ein blaues Quadrat")))
            > 0.01
        )
        assert differ(ours, picture(server, graphs.change(graph, "KSampler", model=["20", 0]))) > 0.01, (
            "the projection is not in the MODEL"
        )


def test_padding_is_left_out_so_a_longer_prompt_has_more_rows(server, base):
    """With padding in, the rows would be 80 whatever the prompt."""
    shapes = []
    for text in ("ein Kreis", "ein roter Kreis und ein blaues Quadrat"):
        graph = graphs.change(base, "Prompt", text=text)
        graph = {id: graph[id] for id in ("2", "3", "20")} | {
            "30": {
                "class_type": "MuLanSaveConditioning",
                "inputs": {"conditioning": ["3", 0], "filename_prefix": "rows"},
            }
        }
        shapes.append(server.run(graph).nodes["30"]["text"][0])
    assert shapes[0] != shapes[1]


def test_micro_conditioning(server, base, plain):
    """CLIPTextEncodePixArtAlpha: the sizes reach alpha."""

    def sized(width):
        node = {
            "class_type": "CLIPTextEncodePixArtAlpha",
            "inputs": {"clip": ["2", 1], "text": "一个蓝色的大五角星", "width": width, "height": 1024},
        }
        return picture(server, graphs.change({**base, "30": node}, "KSampler", positive=["30", 0]))

    assert differ(sized(1024), sized(256)) > 0.001


def test_the_whole_transformer_needs_no_adapter(server, base, plain):
    """mulan-pixart in diffusers' layout brings the projection: with the same weights, the same picture as alpha with
    the adapter.
    """
    graph = graphs.change(base, "UNETLoader", unet_name="mulan-pixart.safetensors")
    whole = picture(server, graphs.change(graph, "MuLan Loader", adapter=WHOLE))
    assert differ(whole, plain) < 0.5


def test_without_the_model_the_projection_has_no_place(server, base):
    graph = graphs.change(base, "KSampler", model=["20", 0])
    del graph["2"]["inputs"]["model"]
    with pytest.raises(GraphFailed, match="replaces weights of the PixArt model. Connect the checkpoint's MODEL"):
        server.run(graph)
