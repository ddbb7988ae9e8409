"""What the trainers write in MuLan Loader: it draws, and another prompt draws another image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, to_published
from mulan_nodes.mulan.conditioning.encoder_kinds import FINGERPRINT_KEY
from mulan_nodes.mulan.conditioning.model_files import open_text_encoder
from mulan_nodes.mulan.training import encoder_training, validation
from mulan_nodes.mulan.training.__main__ import main
from mulan_nodes.tests.unit.test_train_families import draw_images
from mulan_nodes.tests.unit.train_bases import diffusers_folder, text_encoder
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


def test_a_smaller_text_encoder_stands_for_its_teacher(server, models, tmp_path, capsys):
    """An adapter that was trained with the teacher reads it, without a warning; images are nearly the teacher's."""
    teacher = text_encoder(models / "text_encoders" / "of_three_layers.safetensors", 64, layers=3)
    (tmp_path / "texts").mkdir()
    prompts = [f"{count} {color} circles" for count in range(20) for color in ("red", "blue", "rote", "蓝色")]
    (tmp_path / "texts" / "en.txt").write_text("\n".join(prompts), "utf-8")
    command = [
        *("encoder", "--teacher", str(teacher), "--layers", "2"),
        *("--texts", str(tmp_path / "texts"), "--out", str(tmp_path / "out"), "--steps", "60", "--batch-size", "8"),
        *("--learning-rate", "1e-3", "--precision", "fp32", "--accumulate", "1", "--warmup", "0"),
    ]
    assert main(command) == 0, capsys.readouterr().err
    Path(tmp_path / "out" / encoder_training.FILE).rename(models / "text_encoders" / "of_two_layers.safetensors")
    torch.manual_seed(0)
    shape = AdapterShape(64, context_dim=768, num_queries=24, intermediate_size=64)
    weights = {name: tensor.clone() for name, tensor in to_published(LanguageAdapter(shape).state_dict()).items()}
    labels = {FINGERPRINT_KEY: open_text_encoder(teacher).fingerprint()}
    save_file(weights, models / "mulan" / "of_three_layers.safetensors", labels)

    graph = graphs.change(graphs.load("mulan_text_to_image"), "KSampler", steps=2)
    graph = graphs.change(graph, "Prompt", text="3 red circles")
    small = graphs.change(
        graph, "MuLan Loader", text_encoder="of_two_layers.safetensors", adapter="of_three_layers.safetensors"
    )
    whole = graphs.change(small, "MuLan Loader", text_encoder="of_three_layers.safetensors")
    first, other = picture(server, whole), picture(server, graphs.change(whole, "Prompt", text="19 蓝色 circles"))
    before = len(server.log.read_text("utf-8", "replace"))
    assert differ(picture(server, small), first) < 0.5 * differ(other, first)
    assert "was trained with another text encoder" not in server.log.read_text("utf-8", "replace")[before:]
