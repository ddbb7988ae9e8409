"""MuLan Encode Languages through the queue: the same conditionings as CLIP Text Encode, as lists that the stock nodes
run over.
"""

from __future__ import annotations

import pytest
import torch

from mulan_nodes.mulan.conditioning.saved_conditioning import load_conditioning
from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import GraphFailed, GraphRejected, decode
from mulan_nodes.tools.tinyworld.captions import TRAINED
from mulan_nodes.tools.tinyworld.world import Thing, read

PROMPTS = [
    "a big red star",
    "一个(蓝色:1.3)的大五角星",
    "большая синяя звезда",
    "",
    "a big red star",
    " ".join(["a small green circle"] * 40),
]
NEGATIVE = "ein kleiner Kreis"


@pytest.fixture(scope="module")
def loaders() -> dict:
    """The template's checkpoint and MuLan Loader, nodes 1 and 2."""
    graph = graphs.load("mulan_text_to_image")
    return {id: graph[id] for id in ("1", "2")}


def texts(prompts: list[str]) -> dict:
    """Nodes 10.. with a text each, and node 9 that makes a list of them."""
    nodes = {
        str(10 + i): {"class_type": "PrimitiveStringMultiline", "inputs": {"value": prompt}}
        for i, prompt in enumerate(prompts)
    }
    return nodes | {
        "9": {"class_type": "CreateList", "inputs": {f"inputs.input{i}": [id, 0] for i, id in enumerate(nodes)}}
    }


def encode(prompts, clip=("2", 1), **more) -> dict:
    return {"class_type": "MuLanEncodeLanguages", "inputs": {"clip": list(clip), "prompts": prompts, **more}}


def save(conditioning, prefix: str) -> dict:
    return {"class_type": "MuLanSaveConditioning", "inputs": {"conditioning": conditioning, "filename_prefix": prefix}}


def saved(server, prefix: str) -> list[list]:
    """The conditionings that were saved under a prefix, in their order."""
    return [
        load_conditioning(path).conditioning
        for path in sorted((server.folder / "output" / "conditioning").glob(f"{prefix}_[0-9]*.safetensors"))
    ]


def lora(clip) -> dict:
    return {
        "class_type": "LoraLoader",
        "inputs": {
            "model": ["2", 0],
            "clip": clip,
            "lora_name": "shapes.safetensors",
            "strength_model": 1.0,
            "strength_clip": 1.0,
        },
    }


def hooked(clip) -> dict:
    return {
        "class_type": "SetClipHooks",
        "inputs": {"clip": clip, "hooks": ["52", 0], "apply_to_conds": False, "schedule_clip": True},
    }


HOOKS = {
    "50": {
        "class_type": "CreateHookLora",
        "inputs": {"lora_name": "shapes.safetensors", "strength_model": 0.0, "strength_clip": 1.0},
    },
    "51": {"class_type": "CreateHookKeyframe", "inputs": {"strength_mult": 0.0, "start_percent": 0.5}},
    "52": {"class_type": "SetHookKeyframes", "inputs": {"hooks": ["50", 0], "hook_kf": ["51", 0]}},
}
# kind -> more nodes, the CLIP for the prompts, the CLIP that the negative is compared with
CLIPS = {
    "mulan": ({}, ["2", 1], ["2", 2]),
    "negative view": ({}, ["2", 2], ["2", 2]),
    "lora": ({"40": lora(["2", 1]), "41": lora(["2", 2])}, ["40", 1], ["41", 1]),
    "scheduled": ({**HOOKS, "40": hooked(["2", 1]), "41": hooked(["2", 2])}, ["40", 0], ["41", 0]),
    "stock": ({}, ["1", 1], ["1", 1]),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_each_conditioning_is_that_of_clip_text_encode(kind, server, loaders):
    more, clip, negative_clip = CLIPS[kind]
    server.run(
        {
            **loaders,
            **more,
            **texts(PROMPTS),
            "7": encode(["9", 0], clip, negative=NEGATIVE),
            "30": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ["9", 0]}},
            "31": {"class_type": "CLIPTextEncode", "inputs": {"clip": negative_clip, "text": NEGATIVE}},
            "32": save(["7", 0], f"{kind}_ours"),
            "33": save(["30", 0], f"{kind}_stock"),
            "34": save(["7", 1], f"{kind}_ours_negative"),
            "35": save(["31", 0], f"{kind}_stock_negative"),
        }
    )
    for part, count in (("", len(PROMPTS)), ("_negative", 1)):
        ours, stock = saved(server, f"{kind}_ours{part}"), saved(server, f"{kind}_stock{part}")
        assert len(ours) == len(stock) == count
        for one, other in zip(ours, stock, strict=True):
            assert_alike(one, other)
    different = saved(server, f"{kind}_ours")
    assert different[0][0][0].shape != different[1][0][0].shape or not torch.allclose(
        different[0][0][0], different[1][0][0], atol=1e-2
    )


def assert_alike(ours: list, stock: list) -> None:
    """The same entries, but for what a batch changes in float32."""
    assert len(ours) == len(stock)
    for (context, values), (stock_context, stock_values) in zip(ours, stock, strict=True):
        assert torch.allclose(context, stock_context, atol=2e-5), (context - stock_context).abs().max()
        assert values.keys() == stock_values.keys()
        for name, value in values.items():
            assert (
                torch.equal(value, stock_values[name])
                if isinstance(value, torch.Tensor)
                else value == stock_values[name]
            ), name


def test_the_grid_has_a_picture_of_the_same_thing_for_each_language(server):
    """The template, with three of its languages: stock nodes run once for each item, labels and prompts go along."""
    thing = Thing("blue", "star", "big")
    lines = {
        code: TRAINED[code].noun_phrase(thing, frozenset({"colour", "shape", "size"})) for code in ("en", "zh", "ar")
    }
    template = graphs.load("mulan_language_grid")
    for code, line in lines.items():
        assert (
            f"{code}: {line}"
            in template[graphs.find(template, "MuLanEncodeLanguages")]["inputs"]["prompts"].splitlines()
        )
    graph = graphs.change(
        template, "MuLanEncodeLanguages", prompts="\n".join(f"{code}: {line}" for code, line in lines.items())
    )
    encoder, decoder = graphs.find(graph, "MuLanEncodeLanguages"), graphs.find(graph, "VAEDecode")
    outputs = server.run(
        graphs.add(
            graph,
            ("20", "SaveImage", {"images": [decoder, 0], "filename_prefix": "cells"}),
            ("21", "PreviewAny", {"source": [encoder, 2]}),
            ("22", "PreviewAny", {"source": [encoder, 3]}),
        )
    )
    assert outputs.nodes["21"]["text"] == list(lines) and outputs.nodes["22"]["text"] == list(lines.values())
    assert [read(decode(file)).agrees(thing) for file in outputs.files["20"]] == [True] * 3
    (grid,) = outputs.files[graphs.find(template, "SaveImage")]
    assert decode(grid).shape == (256, 4 * 256 + 3 * 4, 3)


def test_no_prompt_is_told_before_anything_runs(server, loaders):
    with pytest.raises(GraphRejected) as refusal:
        server.run({**loaders, "7": encode("\n  \n"), "8": save(["7", 0], "none")})
    assert "prompts: there is no prompt: write one per line" in refusal.value.node_errors["7"]["errors"][0]["details"]


def test_a_list_where_one_is_expected_is_an_error(server, loaders):
    with pytest.raises(GraphFailed, match="negative: takes one value, but a list of 2 is connected"):
        server.run(
            {**loaders, **texts(["a", "b"]), "7": encode("a cat", negative=["9", 0]), "8": save(["7", 0], "none")}
        )
