"""MuLan Save Conditioning and MuLan Load Conditioning through the queue: graphs that draw without the text encoder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mulan_nodes.mulan.conditioning.saved_conditioning import save_conditioning
from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import GraphFailed, GraphRejected


@pytest.fixture(scope="module")
def drawn(server) -> np.ndarray:
    """What the saving template draws with the text encoder; it leaves its two files in output/conditioning."""
    return graphs.picture(server, graphs.load("mulan_save_conditioning"))


@pytest.fixture
def folder(server) -> Path:
    return server.folder / "output" / "conditioning"


def load(name: str, **more) -> dict:
    """A graph that does nothing but load one conditioning."""
    return {
        "1": {"class_type": "MuLanLoadConditioning", "inputs": {"file": name, **more}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
    }


def refusal(server, name: str) -> str:
    with pytest.raises(GraphRejected) as refused:
        server.run(load(name))
    return refused.value.node_errors["1"]["errors"][0]["details"]


def context(width: int = 768) -> torch.Tensor:
    return torch.ones(1, 120, width)


def options(server) -> list[str]:
    return server.object_info("MuLanLoadConditioning")["input"]["required"]["file"][1]["options"]


def test_the_same_picture_without_a_text_encoder(server, drawn):
    graph = graphs.load("mulan_load_conditioning")
    assert {node["class_type"] for node in graph.values()} == {
        "CheckpointLoaderSimple",
        "MuLanLoadConditioning",
        "EmptyLatentImage",
        "KSampler",
        "VAEDecode",
        "SaveImage",
    }
    server.free()
    assert np.array_equal(graphs.picture(server, graph), drawn)


def test_another_machine_needs_only_the_files(server, drawn, folder):
    """Copied to the input folder, and without the MODEL to be checked against."""
    graph = graphs.load("mulan_load_conditioning")
    for title in ("Load the prompt", "Load the negative prompt"):
        node = graph[graphs.find(graph, title)]["inputs"]
        name = Path(node["file"].removesuffix(" [output]")).name
        target = server.folder / "input" / "from elsewhere" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(folder / name, target)
        node["file"] = f"from elsewhere/{name}"
        del node["model"]
    assert np.array_equal(graphs.picture(server, graph), drawn)


def test_regions_and_steps_survive(server, drawn):
    """Areas, masks and timestep ranges of several prompts in one file, drawn with and without the detour."""
    graph = graphs.load("mulan_save_conditioning")
    prompt, clip = graphs.find(graph, "Prompt"), graph[graphs.find(graph, "Prompt")]["inputs"]["clip"]
    regions = graphs.add(
        graph,
        ("20", "CLIPTextEncode", {"clip": clip, "text": "a small red circle"}),
        (
            "21",
            "ConditioningSetAreaPercentage",
            {"conditioning": ["20", 0], "width": 0.5, "height": 1.0, "x": 0.5, "y": 0.0, "strength": 0.9},
        ),
        ("22", "SolidMask", {"value": 0.5, "width": 64, "height": 64}),
        (
            "23",
            "ConditioningSetMask",
            {"conditioning": [prompt, 0], "mask": ["22", 0], "strength": 0.8, "set_cond_area": "default"},
        ),
        ("24", "ConditioningSetTimestepRange", {"conditioning": ["23", 0], "start": 0.0, "end": 0.7}),
        ("25", "ConditioningCombine", {"conditioning_1": ["21", 0], "conditioning_2": ["24", 0]}),
        ("26", "MuLanSaveConditioning", {"conditioning": ["25", 0], "filename_prefix": "regions/two"}),
        KSampler_positive=["25", 0],
    )
    direct = graphs.picture(server, graphs.change(regions, "KSampler", steps=6))
    assert graphs.differ(direct, drawn) > 0.5
    loaded = graphs.add(graphs.load("mulan_load_conditioning"), KSampler_steps=6)
    loaded = graphs.change(loaded, "Load the prompt", file="conditioning/regions/two_00001_.safetensors [output]")
    assert np.array_equal(graphs.picture(server, loaded), direct)


@pytest.mark.parametrize(
    "family, loader, loader_inputs, mulan_inputs, size",
    [
        (
            "sdxl",
            "CheckpointLoaderSimple",
            {"ckpt_name": "sd_xl_base_1.0.safetensors"},
            {"text_encoder": "projecting.safetensors", "adapter": "random_sdxl_embed_textproj.safetensors"},
            64,
        ),
        (
            "pixart",
            "UNETLoader",
            {"unet_name": "PixArt-XL-2-1024-MS.safetensors", "weight_dtype": "default"},
            {"text_encoder": "random_wide.safetensors", "adapter": "pixart.pth"},
            384,
        ),
    ],
)
def test_an_adapter_s_weights_of_the_model_are_kept_by_the_stock_model_save(
    family, loader, loader_inputs, mulan_inputs, size, server
):
    graph = graphs.add(
        graphs.load("mulan_save_conditioning"), ("20", loader, loader_inputs), MuLanLoader_model=["20", 0]
    )
    graph = graphs.change(graphs.change(graph, "KSampler", steps=1), "EmptyLatentImage", width=size, height=size)
    for title, name in (("Save the prompt", "prompt"), ("Save the negative prompt", "negative")):
        graph = graphs.change(graph, title, filename_prefix=f"{family}/{name}")
    graph["21"] = {
        "class_type": "ModelSave",
        "inputs": {"model": ["2", 0], "filename_prefix": f"diffusion_models/{family}"},
    }
    direct = graphs.picture(server, graphs.change(graph, "MuLan Loader", **mulan_inputs))

    graph = graphs.add(
        graphs.load("mulan_load_conditioning"),
        ("20", "UNETLoader", {"unet_name": f"{family}_00001_.safetensors", "weight_dtype": "default"}),
        KSampler_model=["20", 0],
    )
    for title, name in (("Load the prompt", "prompt"), ("Load the negative prompt", "negative")):
        graph = graphs.change(
            graph, title, file=f"conditioning/{family}/{name}_00001_.safetensors [output]", model=["20", 0]
        )
    graph = graphs.change(graphs.change(graph, "KSampler", steps=1), "EmptyLatentImage", width=size, height=size)
    assert np.array_equal(graphs.picture(server, graph), direct)


def test_what_the_nodes_say(server, drawn, folder):
    graph = graphs.load("mulan_save_conditioning")
    graph = {id: graph[id] for id in ("1", "2", "3", "5")} | {
        "20": {"class_type": "PreviewAny", "inputs": {"source": ["5", 1]}}
    }
    outputs = server.run(graphs.change(graph, "MuLanSaveConditioning", filename_prefix="told"))
    name = "conditioning/told_00001_.safetensors [output]"
    holds = [
        "told_00001_.safetensors: a conditioning for Stable Diffusion 1.5",
        "'一个蓝色的大五角星': 1 x 120 x 768, float32; pooled_output",
        "text encoder: tiny_internvl.safetensors",
        "adapter: tiny_sd15_adapter.safetensors",
    ]
    assert outputs.nodes["20"]["text"] == [name]
    assert outputs.nodes["5"]["text"][0].splitlines()[:-1] == [name, *holds]
    assert name in options(server)
    outputs = server.run(load(name))
    assert outputs.nodes["2"]["text"] == outputs.nodes["1"]["text"]
    assert outputs.nodes["1"]["text"][0].splitlines()[:-1] == holds
    assert outputs.nodes["1"]["text"][0].splitlines()[-1].startswith("saved by MuLan Nodes ")


def test_a_list_is_saved_item_by_item(server, folder):
    graph = graphs.load("mulan_text_to_image")
    graph = {id: graph[id] for id in ("1", "2")}
    graph |= {
        "3": {
            "class_type": "MuLanEncodeLanguages",
            "inputs": {"clip": ["2", 1], "prompts": "en: a cat\nde: eine Katze"},
        },
        "4": {"class_type": "MuLanSaveConditioning", "inputs": {"conditioning": ["3", 0], "filename_prefix": ["3", 2]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 1]}},
    }
    assert server.run(graph).nodes["5"]["text"] == [
        f"conditioning/{code}_00001_.safetensors [output]" for code in ("en", "de")
    ]
    assert "'eine Katze'" in server.run(load("conditioning/de_00001_.safetensors [output]")).nodes["2"]["text"][0]


def test_a_changed_file_is_read_again(server, folder):
    folder.mkdir(exist_ok=True)
    for prompt in ("first", "second"):
        save_conditioning(folder / "changing.safetensors", [[context(), {"mulan": {"prompt": prompt}}]], {})
        outputs = server.run(load("conditioning/changing.safetensors [output]"))
        assert f"'{prompt}'" in outputs.nodes["2"]["text"][0]


@pytest.mark.parametrize(
    "name",
    [
        "gone.safetensors",
        "conditioning/gone.safetensors [output]",
        "../../secret.safetensors",
        "conditioning/../../input/here.safetensors [output]",
        "blue_star_00001_.safetensors [temp]",
        "",
    ],
)
def test_a_file_that_is_not_listed_is_refused(name, server, drawn):
    details = refusal(server, name)
    assert (
        f"{name!r} is neither in" in details
        and "output/conditioning nor in" in details
        and "MuLan Save Conditioning" in details
    )


def test_wrong_files_are_named_before_anything_runs(server, folder, tiny_models):
    folder.mkdir(exist_ok=True)
    shutil.copy(tiny_models["tiny_sd15_adapter.safetensors"], folder / "wrong_adapter.safetensors")
    save_file({"1.context": context()}, folder / "wrong_future.safetensors", {"mulan_conditioning": "9"})
    (folder / "wrong_text.safetensors").write_text("not a file of tensors")
    for name, words in (
        ("wrong_adapter", "is a MuLan adapter for Stable Diffusion 1.5; expected a conditioning"),
        ("wrong_future", "layout 9, and this MuLan Nodes knows"),
        ("wrong_text", "cannot be read as safetensors"),
    ):
        assert words in refusal(server, f"conditioning/{name}.safetensors [output]")


def test_a_model_of_another_family(server, folder, drawn):
    graph = load("conditioning/blue_star_00001_.safetensors [output]", model=["3", 0])
    graph["3"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "random_sd21.safetensors"}}
    with pytest.raises(GraphFailed) as failure:
        server.run(graph)
    assert failure.value.node_class == "MuLanLoadConditioning"
    assert "blue_star_00001_.safetensors (in " in failure.value.message
    assert (
        "is for Stable Diffusion 1.5, but the connected MODEL is a Stable Diffusion 2.1 model" in failure.value.message
    )


def test_a_controlnet_is_not_lost_silently(server, folder):
    graph = graphs.load("mulan_save_conditioning")
    graph = graphs.add(
        {id: graph[id] for id in ("1", "2", "3", "5")},
        ("20", "ControlNetLoader", {"control_net_name": "hint.safetensors"}),
        ("21", "EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0}),
        (
            "22",
            "ControlNetApply",
            {"conditioning": ["3", 0], "control_net": ["20", 0], "image": ["21", 0], "strength": 1.0},
        ),
        MuLanSaveConditioning_conditioning=["22", 0],
        MuLanSaveConditioning_filename_prefix="controlled",
    )
    with pytest.raises(
        GraphFailed, match="contains `control`, a ControlNet, which cannot be saved.*Save the conditioning before"
    ):
        server.run(graph)
    assert not list(folder.glob("controlled*"))


@pytest.mark.parametrize(
    "prefix, words",
    [
        ("../outside", "'../outside' is not the name of a file below"),
        ("sub/../../outside", "'../outside' is not the name of a file below"),
        ("/outside", "'/outside' is not the name of a file below"),
        ("..", "'..' is not the name of a file below"),
        ("a" * 300, "the file name would be 319 bytes long, and at most 255 are possible"),
        ("猫" * 100 + "/a", "the file name would be 300 bytes long"),
        ("nul\0", "a file name cannot contain '\\x00'"),
        ("two\nlines", "a file name cannot contain '\\n'"),
        ("here/a_file/b", "a_file: a part of the folder's path is a file"),
    ],
)
def test_a_prefix_that_is_no_file_name_is_refused(prefix, words, server, folder):
    (folder / "here").mkdir(parents=True, exist_ok=True)
    (folder / "here" / "a_file").touch()
    before = sorted(folder.rglob("*"))
    graph = graphs.load("mulan_save_conditioning")
    graph = {id: graph[id] for id in ("1", "2", "3", "5")}
    with pytest.raises(GraphFailed, match="ValueError: filename_prefix: ") as refused:
        server.run(graphs.change(graph, "MuLanSaveConditioning", filename_prefix=prefix))
    assert words in refused.value.message
    assert sorted(folder.rglob("*")) == before and not list((server.folder / "output").glob("outside*"))


def test_prefixes_in_any_script_and_half_an_emoji_are_file_names(server, folder):
    graph = graphs.load("mulan_save_conditioning")
    graph = {id: graph[id] for id in ("1", "2", "3", "5")} | {
        "20": {"class_type": "PreviewAny", "inputs": {"source": ["5", 1]}}
    }
    for prefix, name in (
        ("猫/🐈 é", "猫/🐈 é"),
        ("half \ud83d", "half \ufffd"),
        ("folder/", "folder"),
        ("a/../b", "b"),
    ):
        for count in (1, 2):
            outputs = server.run(graphs.change(graph, "MuLanSaveConditioning", filename_prefix=prefix))
            (told,) = outputs.nodes["20"]["text"]
            assert told == f"conditioning/{name}_{count:05}_.safetensors [output]"
            graph["3"]["inputs"]["text"] += "!"  # else nothing runs
            assert told in options(server)
