"""Two servers with the same input and output folders: nothing fails or is lost, every file holds what it should."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mulan_nodes.mulan.boundary.files import UNFINISHED
from mulan_nodes.mulan.checkpoints.tensor_files import open_tensors
from mulan_nodes.mulan.conditioning.saved_conditioning import load_conditioning
from mulan_nodes.tools import comfyui, graphs
from mulan_nodes.tools.comfy_server import ComfyServer, Outputs
from mulan_nodes.visionllm_nodes.detections.json_document import frame_record, read_document, write_document

RUNS = 60  # of each server; a run saves four files
EVERY = 6  # runs until a folder with a new image is embedded


@pytest.fixture(scope="module")
def shared(comfyui_folder, tiny_models, tmp_path_factory):
    """Two servers and the folder that both write to."""
    folder = tmp_path_factory.mktemp("shared")
    comfyui.write_example_images(folder / "input")
    servers = [ComfyServer(comfyui_folder, folder=folder, log=folder / f"{name}.log") for name in ("a", "b")]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(ComfyServer.start, servers))
        yield servers, folder
    finally:
        for server in servers:
            server.stop()


def document(number: int) -> str:
    box = {"x": number, "y": 1, "width": 5, "height": 5, "label": f"thing {number}", "score": 1.0}
    return write_document("boxes", "", [frame_record(1000, 1000, [box])])


def graph(number: int) -> dict:
    template = graphs.load("mulan_save_conditioning")
    nodes = {
        "3": ("CLIPTextEncode", {"clip": ["2", 1], "text": f"a blue star {number}"}),
        "4": ("MuLanSaveConditioning", {"conditioning": ["3", 0], "filename_prefix": "shared"}),
        "5": ("MuLanSaveConditioning", {"conditioning": ["3", 0], "filename_prefix": "sub/shared"}),
        "6": ("PrimitiveStringMultiline", {"value": document(number)}),
        "7": ("VisionLLMSaveDetections", {"json": ["6", 0], "filename_prefix": "shared"}),
        "8": ("VisionLLMSaveDetections", {"json": ["6", 0], "filename_prefix": "sub/shared"}),
        "9": ("PreviewAny", {"source": ["4", 1]}),
        "10": ("PreviewAny", {"source": ["8", 1]}),
    }
    if number % EVERY == 0:
        nodes |= {
            "12": (
                "InternVLRank",
                {
                    "internvl": ["11", 0],
                    "query": f"a star {number}",
                    "folder": "album",
                    "top_k": 3,
                    "threshold": -1.0,
                    "framing": "whole",
                },
            ),
            "13": ("PreviewAny", {"source": ["12", 1]}),
        }
    loaders = {id: template[id] for id in ("1", "2")} | {"11": graphs.load("internvl_label_folder")["3"]}
    return loaders | {id: {"class_type": kind, "inputs": inputs} for id, (kind, inputs) in nodes.items()}


def test_two_servers_share_their_folders(shared):
    servers, folder = shared
    output, album = folder / "output", folder / "input" / "album"
    album.mkdir()
    pictures = sorted((folder / "input" / "tiny_pictures").iterdir())

    def run(server: ComfyServer) -> list[Outputs]:
        done = []
        for number in range(RUNS):
            if number % EVERY == 0:  # the other one may have brought it already
                picture = pictures[number // EVERY % len(pictures)]
                name = f"{servers.index(server)} {picture.name}"
                shutil.copy(picture, folder / name)
                (folder / name).rename(album / name)  # whole: a server may be embedding the folder
            done.append(server.run(graph(number)))
        return done

    with ThreadPoolExecutor() as pool:
        both = list(pool.map(run, servers))

    for kind, suffix, node in (("conditioning", "safetensors", "9"), ("detections", "json", "10")):
        told = [outputs.nodes[node]["text"][0] for runs in both for outputs in runs]
        assert len(set(told)) == 2 * RUNS, "two servers told the same name"
        for part in (output / kind, output / kind / "sub"):
            names = [f"shared_{number:05}_.{suffix}" for number in range(1, 2 * RUNS + 1)]
            assert sorted(file.name for file in part.iterdir() if file.is_file()) == names
            check = check_conditionings if kind == "conditioning" else check_documents
            check(sorted(part.glob(f"*.{suffix}")))
    (cache,) = (output / "internvl").iterdir()
    vectors = open_tensors(cache).read("vectors")
    files = json.loads(open_tensors(cache).metadata["files"])
    assert vectors.isfinite().all() and len(vectors) == len({picture.read_bytes() for picture in album.iterdir()})
    assert set(files) <= set(map(str, album.iterdir()))
    assert not list(folder.rglob(f"*{UNFINISHED}"))
    for name in ("a", "b"):
        assert "stored embeddings" not in (log := Path(folder, f"{name}.log").read_text("utf-8")), log
        assert "could not be stored" not in log


def check_conditionings(files: list[Path]) -> None:
    """Each prompt is in two files, which hold the same."""
    found: dict[str, list[torch.Tensor]] = {}
    for file in files:
        ((context, values),) = load_conditioning(file).conditioning
        found.setdefault(values["mulan"]["prompt"], []).append(context)
    assert set(found) == {f"a blue star {number}" for number in range(RUNS)}
    for one, other in found.values():
        assert torch.equal(one, other)


def check_documents(files: list[Path]) -> None:
    texts = sorted(file.read_text("utf-8").strip() for file in files)
    assert texts == sorted(document(number) for number in range(RUNS) for _ in range(2))
    read_document(texts[0])
