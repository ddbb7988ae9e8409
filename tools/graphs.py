"""The graphs of tests in API format, {node id: {"class_type", "inputs", "_meta": {"title"}}}, small changes to them,
and the images they draw.
"""

import copy
import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "graphs"


def load(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def find(graph: dict, name: str) -> str:
    """The id of the one node with this title, or of this class."""
    for holds in (lambda node: node.get("_meta", {}).get("title") == name, lambda node: node["class_type"] == name):
        found = [node_id for node_id, node in graph.items() if holds(node)]
        if len(found) == 1:
            return found[0]
    raise KeyError(f"{len(found)} nodes are titled or of class {name!r}, one was expected")


def change(graph: dict, name: str, **inputs) -> dict:
    """A copy of the graph in which the node `name` (see find) has these inputs."""
    changed = copy.deepcopy(graph)
    changed[find(graph, name)]["inputs"].update(inputs)
    return changed


def add(graph: dict, *nodes: tuple[str, str, dict], **rewired) -> dict:
    """The graph with more nodes (id, class, inputs); `rewired` gives inputs anew: KSampler_positive=[id, output]."""
    graph = {**graph, **{id: {"class_type": kind, "inputs": inputs} for id, kind, inputs in nodes}}
    for where, link in rewired.items():
        name, _, input_name = where.partition("_")
        graph = change(graph, name, **{input_name: link})
    return graph


def picture(server, graph: dict) -> np.ndarray:
    """The one picture that the graph shows, float [height, width, 3] of 0..255."""
    (image,) = server.run(graph).images
    return image.astype(float)


def differ(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of two pictures in levels of 0..255."""
    return float(np.abs(a - b).mean())


def without_mulan(graph: dict) -> dict:
    """A copy in which the checkpoint's own MODEL and CLIP go where the MuLan Loader's outputs went."""
    loader, checkpoint = find(graph, "MuLanLoader"), find(graph, "CheckpointLoaderSimple")
    stands_in = {0: 0, 1: 1, 2: 1}  # MODEL, CLIP, CLIP for negatives -> MODEL, CLIP
    changed = copy.deepcopy(graph)
    del changed[loader]
    for node in changed.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == loader:
                node["inputs"][name] = [checkpoint, stands_in[value[1]]]
    return changed
