"""MuLan Prompt Inspector through the queue: what it shows, for which CLIP, and without loading the text encoder."""

from __future__ import annotations

import numpy as np
import pytest

from mulan_nodes.tools.comfy_server import GraphFailed

PROMPT = "a (red:1.3) car BREAK 一个蓝色的大五角星"
LOADER = {
    "text_encoder": "tiny_internvl.safetensors",
    "adapter": "tiny_sd15_adapter.safetensors",
    "prompt_style": "default",
}


def graph(text: str, output: int = 1, **loader) -> dict:
    """A loader and an inspector on one of its CLIPs, whose outputs go to stock nodes."""
    return {
        "1": {"class_type": "MuLanLoader", "inputs": {**LOADER, **loader}},
        "2": {"class_type": "MuLanPromptInspector", "inputs": {"clip": ["1", output], "text": text}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inspected"}},
    }


def shown(server, *arguments, **loader) -> str:
    return server.run(graph(*arguments, **loader)).nodes["2"]["text"][0]


def test_the_node_shows_what_it_gives(server):
    outputs = server.run(graph(PROMPT))
    assert outputs.nodes["2"]["text"] == outputs.nodes["3"]["text"]
    on_node, saved = outputs.images
    assert np.array_equal(on_node, saved) and on_node.shape[1] == 1024
    assert "ed×1.3" in outputs.nodes["2"]["text"][0] and "window 2 (BREAK)" in outputs.nodes["2"]["text"][0]


def test_the_text_encoder_does_not_run(server):
    """It reports a step after each of its layers."""
    encodes = graph(f"{PROMPT} again")
    encodes |= {
        "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": PROMPT}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["5", 0]}},
    }
    reported = set()
    server.run(encodes, progress=lambda node, *_: reported.add(node))
    assert reported == {"5"}


def test_each_output_of_the_loader_is_read_as_it_reads(server):
    assert "prompt, style default, prefix summarize:" in shown(server, "a cat")
    assert "negative, style default, no prefix" in shown(server, "a cat", 2)
    upstream = shown(server, "a red car, " * 60, prompt_style="upstream")
    assert "style upstream" in upstream and "cut away" in upstream


def test_the_window_is_the_family_s(server):
    xl = {"text_encoder": "projecting.safetensors", "adapter": "random_sdxl_noembed_attnpool.safetensors"}
    assert "83 rows, 78 of them for text" in shown(server, "a cat", **xl)
    assert "negative, style default, prefix summarize:" in shown(server, "a cat", 2, **xl)


def test_a_lora_on_the_clip_makes_no_difference(server):
    with_lora = graph("a cat")
    with_lora["5"] = {
        "class_type": "LoraLoader",
        "inputs": {
            "model": ["6", 0],
            "clip": ["1", 1],
            "lora_name": "shapes.safetensors",
            "strength_model": 1.0,
            "strength_clip": 1.0,
        },
    }
    with_lora["6"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny_sd15.safetensors"}}
    with_lora["2"]["inputs"]["clip"] = ["5", 1]
    assert server.run(with_lora).nodes["2"]["text"][0] == shown(server, "a cat")


def test_a_clip_that_is_not_mulan_s(server):
    foreign = graph("a cat")
    foreign["1"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny_sd15.safetensors"}}
    with pytest.raises(GraphFailed) as failure:
        server.run(foreign)
    assert failure.value.node_class == "MuLanPromptInspector"
    assert (
        "clip: the connected CLIP is not MuLan's" in failure.value.message
        and ("of a MuLan Loader") in failure.value.message
    )


def test_a_prompt_of_100_kilobytes_with_everything_in_it(server):
    outputs = server.run(graph("((((\ud800\0قطة 红色的城堡 ሰማያዊ 😀 " * 1700))
    assert outputs.images[0].shape[0] <= 2048 and "windows more" in outputs.nodes["2"]["text"][0]
