"""The models' memory belongs to ComfyUI: /free gives it back, and two loaders of one file hold it once."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil

from mulan_nodes.tools import graphs
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm

MEGABYTE = 2**20
LARGE_ENCODER = 200 * MEGABYTE


def resident(server) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


def anonymous(server) -> int:
    """Bytes of the server that are no file's pages; 0 where the system does not tell (only Linux does)."""
    status = Path(f"/proc/{server.process.pid}/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def check_free(server, size: int) -> None:
    """/free, asked for again where ComfyUI missed it just behind a graph's end, gives most of a model's bytes back."""
    loaded = resident(server)
    deadline = time.monotonic() + 30
    while True:
        server.free()
        time.sleep(0.5)
        freed = loaded - resident(server)
        if freed > 0.8 * size or time.monotonic() > deadline:
            break
    assert freed > 0.8 * size, f"{freed / MEGABYTE:.0f} MB of the model's {size / MEGABYTE:.0f} MB came back"


def test_free_gives_the_text_encoder_back(server):
    graph = graphs.change(
        graphs.load("mulan_text_to_image"),
        "MuLan Loader",
        text_encoder="large.safetensors",
        adapter="large.safetensors",
        remember_prompts=False,
    )
    server.run(graphs.change(graph, "KSampler", steps=1))
    check_free(server, LARGE_ENCODER)


def test_free_gives_visionllm_back(server, models):
    """Its parts are read from the file where they are needed: the decoder of poses and both mappers are nearly all of
    it here.
    """
    folder = random_visionllm.checkpoint(models / "visionllm" / "Large", mappers=True)
    server.run(
        {
            id: {"class_type": kind, "inputs": inputs}
            for id, (kind, inputs) in {
                "1": ("VisionLLMLoader", {"checkpoint": "Large"}),
                "2": ("EmptyImage", {"width": 96, "height": 64, "batch_size": 1, "color": 0}),
                "3": (
                    "VisionLLMPose",
                    {
                        "visionllm": ["1", 0],
                        "image": ["2", 0],
                        "objects": "",
                        "skeleton": "person, 17 (COCO)",
                        "keypoints": "",
                        "threshold": 0.0,
                        "top_k": 3,
                    },
                ),
                "4": ("VisionLLMGenerateConditioning", {"visionllm": ["1", 0], "prompt": "a star"}),
                "5": ("PreviewAny", {"source": ["4", 0]}),
                "6": (
                    "VisionLLMEditConditioning",
                    {"visionllm": ["1", 0], "image": ["2", 0], "instruction": "make it winter"},
                ),
                "7": ("PreviewAny", {"source": ["6", 0]}),
            }.items()
        }
    )
    check_free(server, (folder / "model.safetensors").stat().st_size)


def test_two_loaders_hold_one_text_encoder(server):
    """Each its own adapter: the encoder's weights are the file's pages, so the second loader adds next to nothing."""

    def loaded_with(graph, adapter):
        return graphs.change(
            graph, "MuLan Loader", text_encoder="large.safetensors", adapter=adapter, remember_prompts=False
        )

    plain = graphs.change(graphs.load("mulan_text_to_image"), "KSampler", steps=1)
    (second,) = server.run(loaded_with(plain, "large_too.safetensors")).images
    server.free()
    one = loaded_with(plain, "large.safetensors")
    (first,) = server.run(one).images
    before = anonymous(server)

    chain = {"2": "12", "3": "13", "4": "14", "6": "16", "7": "17", "8": "18"}
    other = {}
    for id, node in loaded_with(plain, "large_too.safetensors").items():
        inputs = {
            name: [chain.get(value[0], value[0]), value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        if id in chain:
            other[chain[id]] = {**node, "inputs": inputs, "_meta": {"title": f"{node['_meta']['title']} 2"}}
    both = graphs.change({**one, **other}, "Save Image", filename_prefix="both")
    pictures = server.run(both).images
    added = anonymous(server) - before

    assert not np.array_equal(first, second)
    assert np.array_equal(pictures[0], first) and np.array_equal(pictures[1], second)
    assert added < LARGE_ENCODER / 4, f"the second loader added {added / MEGABYTE:.0f} MB"


def test_after_free_the_next_graph_loads_again(server):
    server.free()
    assert server.run(graphs.load("mulan_text_to_image")).images
