"""What the trainer writes, of every family, in MuLan Loader: it draws, and another prompt draws another image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mulan_nodes.mulan.training import validation
from mulan_nodes.mulan.training.__main__ import main
from mulan_nodes.tests.unit.test_train_families import draw_images
from mulan_nodes.tests.unit.train_bases import diffusers_folder
from mulan_nodes.tools import graphs
from mulan_nodes.tools.graphs import differ, picture


def checkpoint(name: str) -> dict:
    return {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}}


def diffusion_model(name: str) -> dict:
    return {"class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": "default"}}


CASES = {
    "sd15": ("projecting", None, []),
    "sd21": ("projecting", checkpoint("random_sd21.safetensors"), []),
    "sdxl": ("projecting", checkpoint("sd_xl_base_1.0.safetensors"), ["--layout", "embed_textproj"]),
    "alpha": ("random_wide", diffusion_model("PixArt-XL-2-1024-MS.safetensors"), []),
    "sigma": ("random_wide", diffusion_model("PixArt-Sigma-XL-2-1024-MS.safetensors"), []),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_trained_adapter_draws_through_the_nodes(kind, server, models, tmp_path, monkeypatch, capsys):
    encoder, base, more = CASES[kind]
    monkeypatch.setattr(validation, "STEPS", 1)
    command = [
        *("--base", str(diffusers_folder(tmp_path / "base", kind)), "--data", str(draw_images(tmp_path / "data"))),
        *("--text-encoder", str(models / "text_encoders" / f"{encoder}.safetensors"), "--precision", "fp32"),
        *("--size", "32", "--batch-size", "2", "--accumulate", "1", "--warmup", "0", "--steps", "2"),
        *("--prompt", "a circle", "--out", str(tmp_path / "out"), *more),
    ]
    assert main(command) == 0, capsys.readouterr().err
    name = f"trained_{kind}.safetensors"
    Path(tmp_path / "out" / "adapter.safetensors").rename(models / "mulan" / name)

    graph = graphs.load("mulan_text_to_image")
    changes: dict = {"text_encoder": f"{encoder}.safetensors", "adapter": name}
    if base:
        graph["20"] = {**base, "_meta": {"title": "Base"}}
        changes["model"] = ["20", 0]
    graph = graphs.change(graphs.change(graph, "MuLan Loader", **changes), "KSampler", steps=1)
    if kind in ("alpha", "sigma"):
        graph = graphs.change(graph, "Empty Latent Image", width=384, height=384)
    first = picture(server, graph)
    assert np.isfinite(first).all() and first.std() > 0
    assert differ(first, picture(server, graphs.change(graph, "Prompt", text="ein blaues Quadrat"))) > 0
