"""Unpacking the tiny models: only what is missing, whole or not at all, and Stop ends it."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file

from mulan_nodes.mulan.boundary.files import UnwritableError
from mulan_nodes.mulan.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from mulan_nodes.mulan.tiny_models import packs, unpacking
from mulan_nodes.mulan.tiny_models.unpacking import TINY_MODELS, write_tiny_models
from mulan_nodes.tools.tinyworld import pack


@pytest.fixture
def paths(tmp_path):
    return {model: tmp_path / model.folder / model.name for model in TINY_MODELS}


def test_only_what_is_missing_or_damaged_is_written(paths, tmp_path):
    expected = list(paths.values())
    asked = []
    assert write_tiny_models(paths, lambda *progress: asked.append(progress)) == expected
    assert asked == [(index, len(expected), path) for index, path in enumerate(expected)]
    assert write_tiny_models(paths) == []

    whole = expected[5].read_bytes()
    expected[2].write_bytes(b"damaged")
    expected[5].write_bytes(whole[:-1])
    expected[7].unlink()
    assert write_tiny_models(paths) == [expected[2], expected[5], expected[7]]
    assert expected[5].read_bytes() == whole
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(expected)


def test_a_changed_pack_is_unpacked_again(paths, monkeypatch):
    path = {unpacking.INTERNVL: paths[unpacking.INTERNVL]}
    write_tiny_models(path)
    monkeypatch.setattr(unpacking, "pack_version", lambda file: "another")
    assert write_tiny_models(path) == list(path.values())


def test_stop_ends_it_and_leaves_no_part_of_a_file(paths, tmp_path, stop_soon):
    from comfy.model_management import InterruptProcessingException

    timer, _ = stop_soon
    with pytest.raises(InterruptProcessingException):
        write_tiny_models(paths, lambda index, *_: index or timer.run())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_error_names_the_file_and_its_folder(paths, tmp_path):
    (tmp_path / "visionllm").write_text("a file where the folder should be")
    with pytest.raises(UnwritableError, match=r"tiny_visionllm\.safetensors cannot be written to .*visionllm"):
        write_tiny_models({unpacking.VISIONLLM: paths[unpacking.VISIONLLM]})


def test_packs_are_small():
    sizes = [packs.pack_path(name).stat().st_size for name in {model.pack for model in TINY_MODELS}]
    assert sum(sizes) < 6_500_000


def test_codes_stand_for_the_weights():
    torch.manual_seed(0)
    weights = torch.randn(8, 4, 3, 3) * torch.logspace(-4, 1, 8)[:, None, None, None]
    weights[0, 0, 0, 0], weights[3] = 100.0, 0.0  # an outlier, and a row of nothing
    tensors = {"weights": weights, "bias": torch.randn(8), "ids": torch.arange(3)}
    decoded = packs.decode(pack.encode(tensors))
    assert torch.equal(decoded["bias"], tensors["bias"].half()) and torch.equal(decoded["ids"], tensors["ids"])
    assert decoded["weights"].dtype == torch.float16 and not decoded["weights"][3].any()
    errors = (decoded["weights"].float() - weights).flatten(1).square().mean(1).sqrt()
    assert (errors <= 0.02 * weights.flatten(1).square().mean(1).sqrt() + 1e-7).all()


@pytest.mark.skipif(os.name != "posix", reason="only there a file's room is told")
def test_zeros_take_no_room_on_the_disk(tmp_path):
    path = tmp_path / "zeros.safetensors"
    weights = torch.zeros(4096, 1024)
    weights[7] = 1.0
    with SafetensorsWriter(path, {"weights": TensorSpec(torch.float32, (4096, 1024))}, {}) as writer:
        for first in range(0, 4096, 512):
            writer.write("weights", weights[first : first + 512], first)
    assert torch.equal(load_file(path)["weights"], weights)
    assert path.stat().st_size > 2**24 and path.stat().st_blocks * 512 < 2**23
