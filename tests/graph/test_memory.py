"""The text encoder's memory belongs to the host: /free gives it back."""
from __future__ import annotations

import time

import graphs
import psutil

MEGABYTE = 2 ** 20
LARGE_ENCODER = 200 * MEGABYTE


def resident(server) -> int:
    return psutil.Process(server.process.pid).memory_info().rss


def test_free_gives_the_text_encoder_back(server):
    graph = graphs.change(graphs.load("mulan_text_to_image"), "MuLan Loader", text_encoder="large.safetensors", adapter="large.safetensors")
    server.run(graphs.change(graph, "KSampler", steps=1))
    loaded = resident(server)
    server.free()
    deadline = time.monotonic() + 30
    while resident(server) > loaded - 0.8 * LARGE_ENCODER and time.monotonic() < deadline:
        time.sleep(0.5)
    freed = loaded - resident(server)
    assert freed > 0.8 * LARGE_ENCODER, f"{freed / MEGABYTE:.0f} MB of the encoder's {LARGE_ENCODER / MEGABYTE:.0f} MB came back"


def test_after_free_the_next_graph_loads_again(server):
    server.free()
    assert server.run(graphs.load("mulan_text_to_image")).images
