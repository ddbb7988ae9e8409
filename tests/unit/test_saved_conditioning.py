"""Conditionings as files: everything comes back exactly, nothing is lost silently, nothing else is taken for one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import comfy.model_base
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nodes as host_nodes
from mulan_nodes import mulan
from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError
from mulan_nodes.mulan.conditioning.clip import load_clip
from mulan_nodes.mulan.conditioning.languages import encode_unique
from mulan_nodes.mulan.conditioning.saved_conditioning import (
    FORMAT_KEY,
    UnsaveableError,
    load_conditioning,
    save_conditioning,
)

VERSIONS = {"MuLan Nodes": "0.2.0", "ComfyUI": "0.30.0"}


def random(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def text(context_dim: int = 768, prompt: str | None = "一只猫", family: str = "sd15", **values) -> list:
    told = (
        {}
        if prompt is None
        else {"mulan": {"family": family, "prompt": prompt, "text_encoder": "encoder.safetensors", "adapter": "a.pth"}}
    )
    return [[random(1, 120, context_dim), {"pooled_output": None, **told, **values}]]


def there_and_back(conditioning: list, folder: Path) -> list:
    save_conditioning(folder / "saved.safetensors", conditioning, VERSIONS)
    return load_conditioning(folder / "saved.safetensors").conditioning


def assert_same(ours, wanted) -> None:
    """Equal in every type, dtype and bit."""
    assert type(ours) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert ours.dtype == wanted.dtype and torch.equal(ours, wanted)
    elif isinstance(wanted, dict):
        assert list(ours) == list(wanted)
        for key in wanted:
            assert_same(ours[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(ours) == len(wanted)
        for a, b in zip(ours, wanted, strict=False):
            assert_same(a, b)
    else:
        assert ours == wanted


def test_what_the_tiny_clip_encodes_comes_back_exactly(tiny_models, tmp_path):
    clip = load_clip(tiny_models["tiny_internvl.safetensors"], tiny_models["tiny_sd15_adapter.safetensors"])
    prompts, negative = encode_unique(clip, ["a big red star", "一个蓝色的大五角星", ""], "ein Foto")
    for conditioning in [*prompts, negative]:
        assert_same(there_and_back(conditioning, tmp_path), conditioning)
    assert (
        "'一个蓝色的大五角星': 1 x 120 x 768, float32"
        in save_conditioning(tmp_path / "x.safetensors", prompts[1], VERSIONS).describe()
    )


def test_areas_masks_and_timesteps_come_back_exactly(tmp_path):
    left = host_nodes.ConditioningSetArea().append(text(), 64, 64, 0, 0, 0.8)[0]
    right = host_nodes.ConditioningSetAreaPercentage().append(text(prompt="собака"), 0.5, 1.0, 0.5, 0.0, 1.0)[0]
    masked = host_nodes.ConditioningSetMask().append(text(prompt=None), random(2, 64, 64), "mask bounds", 0.25)[0]
    late = host_nodes.ConditioningSetTimestepRange().set_range(masked, 0.1, 1 / 3)[0]
    combined = left + right + late
    loaded = there_and_back(combined, tmp_path)
    assert_same(loaded, combined)
    assert loaded[1][1]["area"][0] == "percentage" and loaded[2][1]["end_percent"] == 1 / 3


def test_sdxl_with_a_pooled_vector_and_sizes(tmp_path):
    conditioning = text(
        2048,
        family="sdxl",
        pooled_output=random(1, 1280),
        width=1024,
        height=768,
        crop_w=0,
        crop_h=8,
        target_width=1024,
        target_height=768,
    )
    assert_same(there_and_back(conditioning, tmp_path), conditioning)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_dtypes_stay(dtype, tmp_path):
    conditioning = [
        [
            random(1, 77, 768, dtype=dtype),
            {"attention_mask": torch.ones(1, 77, dtype=torch.int64), "keep": torch.ones(3, dtype=torch.bool)},
        ]
    ]
    assert_same(there_and_back(conditioning, tmp_path), conditioning)


def test_lists_of_tensors_odd_keys_and_odd_texts(tmp_path):
    values = {
        "reference_latents": [random(1, 4, 8, 8), random(1, 4, 8, 4)],
        "a.b": random(2),
        "a": {"b": random(3)},
        "flag": True,
        "nothing": None,
        "deep": {"pair": (1, [2.5, "x", ()])},
        "size": torch.tensor(7.0),
        "none": torch.zeros(0, 3),
    }
    conditioning = text(prompt='half \ud800 " { \0 ⚡', **values)
    assert_same(there_and_back(conditioning, tmp_path), conditioning)


def test_a_tensor_used_twice_and_a_view_are_stored_once_each(tmp_path):
    mask = random(1, 512, 512)
    conditioning = text(mask=mask) + text(prompt="b", mask=mask) + text(prompt="c", mask=mask.transpose(1, 2))
    assert_same(there_and_back(conditioning, tmp_path), conditioning)
    assert (tmp_path / "saved.safetensors").stat().st_size < 2.1 * mask.nbytes + 3 * conditioning[0][0].nbytes


def test_the_file_tells_what_it_is_to_other_programs(tmp_path):
    save_conditioning(tmp_path / "cat.safetensors", text() + text(prompt="собака"), VERSIONS)
    with safe_open(tmp_path / "cat.safetensors", "pt") as file:
        told = file.metadata()
        assert set(file.keys()) == {"1.context", "2.context"}
    assert (
        json.loads(told["prompts"]) == ["一只猫", "собака"] and told["family"] == "sd15" and told["adapter"] == "a.pth"
    )
    assert json.loads(told["versions"]) == VERSIONS and told[FORMAT_KEY] == "1"
    assert not {"prompt", "workflow"} & told.keys(), "the editor would open them as graphs"


def test_a_description_says_what_is_inside(tmp_path):
    save_conditioning(tmp_path / "cat.safetensors", text(mask=random(1, 8, 8)) + text(prompt=None), VERSIONS)
    lines = load_conditioning(tmp_path / "cat.safetensors").describe().splitlines()
    assert lines == [
        "cat.safetensors: a conditioning for Stable Diffusion 1.5",
        "'一只猫': 1 x 120 x 768, float32; mask",
        "prompt not known: 1 x 120 x 768, float32",
        "text encoder: encoder.safetensors",
        "adapter: a.pth",
        "saved by MuLan Nodes 0.2.0, ComfyUI 0.30.0",
    ]


class ControlNet:
    pass


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "values, words",
    [
        ({"control": ControlNet()}, r"entry 2 of this conditioning contains `control`, a ControlNet"),
        ({"gligen": ("position", ControlNet())}, r"contains `gligen\.1`, a ControlNet"),
        ({"scale": {1: 2}}, r"contains `scale`, a dict"),
        ({"call": print}, r"contains `call`, a builtin_function"),
        ({"mask": torch.tensor([float("nan")])}, r"2\.mask .*contains NaN"),
        ({"mask": torch.zeros(3, 3).to_sparse()}, r"2\.mask .*cannot hold \(torch.float32, torch.sparse_coo"),
        ({"mask": torch.zeros(3, dtype=torch.complex64)}, r"2\.mask .*that a file cannot hold \(torch.complex64"),
        ({"mask": torch.zeros(3, device="meta")}, r"2\.mask .*that a file cannot hold .*on meta"),
        ({"mask": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)}, r"2\.mask .*cannot hold .*qint8"),
        ({"seed": 10**5000}, r"2\.seed .*is a number of more than 64 bits"),
        ({"deep": deep(100_000)}, r"nested more than 50 deep: 2\.deep\.0\.0"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_by_its_name(values, words, tmp_path):
    with pytest.raises(UnsaveableError, match=words):
        save_conditioning(tmp_path / "x.safetensors", text() + text(**values), VERSIONS)
    assert not list(tmp_path.iterdir())


def test_nothing_is_no_conditioning(tmp_path):
    with pytest.raises(UnsaveableError, match="no entries"):
        save_conditioning(tmp_path / "x.safetensors", [], VERSIONS)
    with pytest.raises(UnsaveableError, match="entry 1 .* NoneType where its context should be"):
        save_conditioning(tmp_path / "x.safetensors", [[None, {}]], VERSIONS)
    for entry in (None, 5, [], [random(1, 2, 3)], (random(1, 2, 3), {}, 1), [random(1, 2, 3), []], "ab"):
        with pytest.raises(UnsaveableError, match="entry 2 of this conditioning is not a context with its values"):
            save_conditioning(tmp_path / "x.safetensors", [*text(), entry], VERSIONS)
    assert not list(tmp_path.iterdir())


def test_half_characters_and_foreign_marks_are_kept_or_left_out(tmp_path):
    """Keys and texts of other packs: a name of a tensor has to be text, what another pack calls "mulan" is not ours."""
    wanted = text(prompt=None, **{"half \ud83d": random(2), "mulan": {"prompt": 5, "family": ["sd15"]}})
    assert_same(there_and_back(wanted, tmp_path), wanted)
    assert there_and_back(text(prompt="half \ud83d"), tmp_path)[0][1]["mulan"]["prompt"] == "half \ud83d"


@pytest.fixture
def saved(tmp_path) -> Path:
    save_conditioning(tmp_path / "saved.safetensors", text(), VERSIONS)
    return tmp_path / "saved.safetensors"


def rewrite(path: Path, **changes: str) -> Path:
    """The file with other metadata, or with other tensors where a change is one."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path) | {name: value for name, value in changes.items() if isinstance(value, torch.Tensor)}
    save_file(tensors, path, metadata | {name: value for name, value in changes.items() if isinstance(value, str)})
    return path


def test_other_files_are_named(saved, tiny_models):
    for name, what in (
        ("tiny_sd15_adapter.safetensors", "a MuLan adapter for Stable Diffusion 1.5"),
        ("tiny_sd15.safetensors", "a whole checkpoint"),
    ):
        with pytest.raises(WrongFileError, match=f"{name} .* is {what}.*MuLan Save Conditioning wrote"):
            load_conditioning(tiny_models[name])


def test_newer_and_damaged_files_are_named(saved):
    whole = saved.read_bytes()
    with pytest.raises(WrongFileError, match="layout 2, and this MuLan Nodes knows 1: update MuLan Nodes"):
        load_conditioning(rewrite(saved, **{FORMAT_KEY: "2"}))
    for entries in (
        "not json",
        "[{}]",
        "[]",
        "7",
        '[{"context": {"tensor": "gone"}, "values": {}}]',
        '[{"context": {"code": "1"}, "values": {}}]',
        '[{"context": 1, "values": {"dict": {}}}]',
        "[" * 5000,
    ):
        saved.write_bytes(whole)
        with pytest.raises(WrongFileError, match="damaged saved conditioning"):
            load_conditioning(rewrite(saved, entries=entries))
    saved.write_bytes(whole[:-100])
    with pytest.raises(WrongFileError, match="cannot be read as safetensors"):
        load_conditioning(saved)
    saved.write_text("<html>not found</html>")
    with pytest.raises(WrongFileError, match="cannot be read as safetensors"):
        load_conditioning(saved)


def test_nan_is_named(saved):
    with pytest.raises(WrongFileError, match=r"contains NaN .* in 1\.context"):
        load_conditioning(rewrite(saved, **{"1.context": torch.full((1, 120, 768), float("nan"))}))


def test_a_loaded_conditioning_outlives_its_file(saved):
    loaded = load_conditioning(saved)
    saved.write_bytes(b"")
    assert_same(loaded.conditioning, text())


class PixArt(comfy.model_base.PixArt):
    """Only its class is looked at."""

    def __init__(self):
        self.model_config = PixArtSigma()


class Config:
    def __init__(self, **unet_config):
        self.unet_config = unet_config


class SD15(Config):
    pass


class SDXL(Config):
    pass


class Flux(Config):
    pass


class PixArtSigma(Config):
    pass


def model(kind: str) -> SimpleNamespace:
    """As much of a MODEL as tells its family."""
    if kind == "PixArt":
        return SimpleNamespace(model=PixArt())
    config = {"SD15": SD15(context_dim=768), "SDXL": SDXL(context_dim=2048), "Flux": Flux(image_model="flux")}[kind]
    return SimpleNamespace(model=SimpleNamespace(model_config=config))


@pytest.mark.parametrize(
    "width, told, kind, words",
    [
        (
            768,
            "sd15",
            "SDXL",
            r"the conditioning x\.safetensors \(in .*\) is for Stable Diffusion 1\.5, but the connected MODEL is a "
            r"SDXL model",
        ),
        (768, "sd15", "PixArt", "a PixArt model"),
        (768, "sd15", "Flux", "a Flux, a model that MuLan has no adapter for"),
        (4096, "pixart", "Flux", "is for PixArt, but the connected MODEL is a Flux"),
        (768, None, "SDXL", r"Stable Diffusion 1\.5 \(contexts of width 768\).*a SDXL \(contexts of width 2048\)"),
        (1280, None, "SDXL", "the SDXL refiner"),
        (768, None, "PixArt", r"a PixArtSigma \(contexts of width 4096\)"),
        (4096, None, "SD15", "a model of contexts of width 4096"),
    ],
)
def test_a_model_of_another_family_is_refused(width, told, kind, words, tmp_path):
    saved = save_conditioning(tmp_path / "x.safetensors", text(width, told and "cat", told), VERSIONS)
    with pytest.raises(ValueError, match=words):
        saved.check_model(model(kind))


@pytest.mark.parametrize(
    "width, told, kind",
    [
        (768, "sd15", "SD15"),
        (2048, "sdxl", "SDXL"),
        (4096, "pixart", "PixArt"),
        (2048, None, "SDXL"),
        (4096, None, "PixArt"),
        (4096, None, "Flux"),
    ],
)
def test_a_model_that_fits_is_not(width, told, kind, tmp_path):
    save_conditioning(tmp_path / "x.safetensors", text(width, told and "cat", told), VERSIONS).check_model(model(kind))


def test_the_version_is_the_project_s():
    project = Path(mulan.__file__).resolve().parents[1] / "pyproject.toml"
    assert re.search(r'^version = "([^"]+)"', project.read_text("utf-8"), re.M)[1] == mulan.VERSION


def test_a_file_too_large_to_read_whole_is_refused(saved):
    with open(saved, "r+b") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
        described = json.loads(file.read(header - 8))
        data = max(tensor["data_offsets"][1] for name, tensor in described.items() if name != "__metadata__")
        described["more"] = {"dtype": "U8", "shape": [2**33], "data_offsets": [data, data + 2**33]}
        text = json.dumps(described).encode()
        file.seek(0)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + data + 2**33)  # takes no room on the disk
    with pytest.raises(WrongFileError, match="has 8.6 GB, and saved conditionings of up to 4.3 GB are loaded"):
        load_conditioning(saved)


@pytest.mark.parametrize("value", [3, "text", torch.ones(2, 2), {"a": 1}])
def test_what_is_no_list_of_entries_is_refused(value, tmp_path):
    with pytest.raises(UnsaveableError, match="a conditioning is a list of entries, and this is a "):
        save_conditioning(tmp_path / "file.safetensors", value, {})
