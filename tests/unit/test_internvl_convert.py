"""A whole InternVL converted: two files, of which one is MuLan's text encoder, and together they are what they were
made of.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints import quantization
from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError
from mulan_nodes.mulan.conditioning.model_files import open_text_encoder
from mulan_nodes.mulan.conversion.__main__ import main
from mulan_nodes.mulan.conversion.converters import convert
from mulan_nodes.mulan.conversion.output_files import CannotWriteError
from mulan_nodes.mulan.internvl.internvl_files import open_internvl
from mulan_nodes.mulan.internvl.internvl_loader import load_internvl
from mulan_nodes.tools.random_checkpoints import internvl as random_internvl

SIZES = dict(
    width=128,
    feed_forward=256,
    heads=2,
    text_width=128,
    text_feed_forward=256,
    text_heads=2,
    pool_heads=16,
    embedding=64,
)
UPSTREAMS_HEADS = dict(heads=1, text_heads=1)
# The length of the difference of two unit vectors. Measured on these weights, images and texts: int8 0.017 and 0.032,
# fp8 0.05 and 0.15,
# fp16 8e-4 and 1.6e-3.
TOLERANCES = {"int8": 0.06, "int4": 0.5, "fp8": 0.25, "fp16": 4e-3}
TEXTS = ["a red circle", "чёрная собака", "two blue squares beside a line"]


def images() -> list[torch.Tensor]:
    return list(torch.rand(4, 20, 24, 3, generator=torch.Generator().manual_seed(1)))


def difference(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    return (ours - wanted).norm(dim=1).max().item()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return random_internvl.checkpoint(tmp_path_factory.mktemp("published") / "InternVL-small", shards="bin", **SIZES)


@pytest.fixture(scope="module")
def source(folder):
    return {mode: load_internvl(folder, mode) for mode in "CG"}


@pytest.mark.parametrize("format", quantization.FORMATS)
def test_both_files_together_equal_the_source(folder, source, format, tmp_path):
    made = convert(folder, tmp_path, format)
    (vision,) = made.beside
    assert (made.path.name, made.folder) == (f"InternVL-small_text_{format}.safetensors", "text_encoders")
    assert (vision.path.name, vision.folder) == (f"InternVL-small_vision_{format}.safetensors", "internvl")
    assert vision.title == f"The vision side of InternVL-C and InternVL-G (3 layers, width 128) in {format}"
    assert vision.path.stat().st_size == vision.size and made.path.stat().st_size == made.size
    for mode in "CG":
        pair = load_internvl(vision.path, mode, text_encoder=made.path)
        for found, wanted in (
            (pair.embed_images(images()), source[mode].embed_images(images())),
            (pair.embed_texts(TEXTS), source[mode].embed_texts(TEXTS)),
        ):
            assert 0 < difference(found, wanted) < TOLERANCES[format]
        assert pair.logit_scale == pytest.approx(source[mode].logit_scale, rel=2e-3)


@pytest.mark.parametrize(
    "format, matrix, smaller",
    [
        ("int8", torch.int8, 0.75),
        ("int4", torch.uint8, 0.6),
        ("fp8", torch.float8_e4m3fn, 0.75),
        ("fp16", torch.float16, 1.01),
    ],
)
def test_the_vision_file_holds_what_is_not_text(folder, format, matrix, smaller, tmp_path):
    (vision,) = convert(folder, tmp_path, format).beside
    weights = load_file(vision.path)
    named = {name for name in weights if not name.endswith((".weight_scale", ".weight_scale_2", ".comfy_quant"))}
    published = random_internvl.tensors(**SIZES)
    assert named == {
        name
        for name in published
        if not name.startswith("itm_head.") and (not name.startswith("qllama.") or ".cross_attn." in name)
    }
    in_8_bits = {name for name in named if weights[name].dtype == matrix} if format != "fp16" else set()
    layers = re.compile(r"(attn\.(qkv|proj)|mlp\.fc[12]|qllama.*cross_attn\.[qkvo]_proj)\.weight")
    assert in_8_bits == (
        {name for name in named if layers.search(name) and not name.startswith("clip_projector")}
        if format != "fp16"
        else set()
    )
    assert {weights[name].dtype for name in named - in_8_bits} == {torch.float16}
    assert vision.size < smaller * 2 * sum(published[name].numel() for name in named) + 30_000
    with safe_open(vision.path, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"]) == json.loads((folder / "config.json").read_text("utf-8"))
    assert (
        metadata["license"].startswith("MIT")
        and metadata["source"] == "InternVL-small, from OpenGVLab/InternVL-14B-224px on Hugging Face"
    )
    assert metadata["title"] == "The vision side of InternVL-C and InternVL-G"


@pytest.mark.parametrize("format", quantization.FORMATS)
def test_the_single_pth_becomes_mode_c(tmp_path_factory, format, tmp_path):
    sizes = {**SIZES, **UPSTREAMS_HEADS}
    file = random_internvl.single(tmp_path_factory.mktemp("pth") / "internvl_c_small.pth", **sizes)
    wanted = load_internvl(file)
    made = convert(file, tmp_path, format)
    (vision,) = made.beside
    assert vision.path.name == f"internvl_c_small_vision_{format}.safetensors" and vision.title.startswith(
        "The vision side of InternVL-C ("
    )
    pair = load_internvl(vision.path, text_encoder=made.path)
    for found, expected in (
        (pair.embed_images(images()), wanted.embed_images(images())),
        (pair.embed_texts(TEXTS), wanted.embed_texts(TEXTS)),
    ):
        assert 0 < difference(found, expected) < TOLERANCES[format]
    assert open_internvl(vision.path).modes == ("C",)


def test_the_text_file_is_mulans(folder, tmp_path):
    made = convert(folder, tmp_path)
    opened = open_text_encoder(made.path)
    assert opened.config.num_hidden_layers == 3 and opened.projection_dim == 64
    assert not [name for name in opened.file.shapes if "vision" in name or "cross_attn" in name]


def test_names_follow_the_target(folder, tmp_path):
    made = convert(folder, tmp_path / "mine.safetensors", "fp16")
    assert made.path.name == "mine.safetensors" and made.beside[0].path.name == "mine_vision_fp16.safetensors"
    named = convert(folder, tmp_path / "ours_text_int8.safetensors")
    assert named.beside[0].path.name == "ours_vision_int8.safetensors"


def test_neither_file_is_overwritten_unasked(folder, tmp_path):
    (tmp_path / "InternVL-small_vision_int8.safetensors").touch()
    with pytest.raises(CannotWriteError, match="InternVL-small_vision_int8.safetensors already exists"):
        convert(folder, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["InternVL-small_vision_int8.safetensors"]
    convert(folder, tmp_path, overwrite=True)
    assert open_internvl(tmp_path / "InternVL-small_vision_int8.safetensors").modes == ("C", "G")


def test_both_appear_or_none(folder, tmp_path):
    def stop(done):
        assert done.all_tensors > 150 and done.all_bytes > 1_000_000
        if done.tensors > done.all_tensors - 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path, progress=stop)
    assert not list(tmp_path.iterdir())


def test_a_disk_with_room_for_one_of_two_files_is_reported(folder, tmp_path, monkeypatch):
    made = convert(folder, tmp_path)
    free = made.size + made.beside[0].size - 1
    monkeypatch.setattr(
        "mulan_nodes.mulan.checkpoints.safetensors_writer.shutil.disk_usage", lambda _: SimpleNamespace(free=free)
    )
    (tmp_path / "other").mkdir()
    with pytest.raises(
        OSError, match="InternVL-small_text_int8.safetensors with InternVL-small_vision_int8.safetensors takes"
    ):
        convert(folder, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_values_too_large_for_float16_become_bfloat16(tmp_path):
    folder = random_internvl.checkpoint(tmp_path / "large")
    weights = load_file(folder / "model.safetensors")
    weights["vision_model.encoder.layers.1.ls2"][3] = 1e5
    save_file(weights, folder / "model.safetensors")
    (vision,) = convert(folder, tmp_path).beside
    assert load_file(vision.path)["vision_model.encoder.layers.1.ls2"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ("vision_model.encoder.layers.1.ls2", "vision_model.encoder.layers.1.mlp.fc1.weight"))
def test_damaged_weights_are_reported_and_nothing_is_written(name, tmp_path):
    folder = random_internvl.checkpoint(tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, folder / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(WrongFileError, match=rf"damaged \(in .*\) is damaged: {name} holds .*NaN"):
        convert(folder, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_converted_file_is_refused(folder, tmp_path):
    (vision,) = convert(folder, tmp_path).beside
    with pytest.raises(
        WrongFileError, match="is an InternVL-C or -G checkpoint, without its text encoder .*; expected InternVL, from"
    ):
        convert(vision.path, tmp_path)


def test_an_incomplete_vision_side_is_refused(tmp_path):
    folder = random_internvl.checkpoint(tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    del weights["clip_projector.norm1_k.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        WrongFileError, match="cut .* is incomplete: 1 tensors are missing, the first is clip_projector.norm1_k.bias"
    ):
        convert(folder, tmp_path)


def test_a_file_without_one_of_its_scales_is_refused(folder, tmp_path):
    (vision,) = convert(folder, tmp_path).beside
    with safe_open(vision.path, framework="pt") as file:
        metadata = file.metadata()
    weights = load_file(vision.path)
    del weights["vision_model.encoder.layers.1.attn.qkv.weight_scale"]
    save_file(weights, tmp_path / "cut.safetensors", metadata=metadata)
    with pytest.raises(
        WrongFileError,
        match="cut.safetensors .* is incomplete: .* the first is vision_model.encoder.layers.1.attn.qkv.weight_scale",
    ):
        open_internvl(tmp_path / "cut.safetensors")


def test_the_command_reports_both_files(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(folder), "--no-check"]) == 0
    written = capsys.readouterr().out
    assert "Put InternVL-small_text_int8.safetensors into models/text_encoders." in written
    assert "Put InternVL-small_vision_int8.safetensors into models/internvl." in written
