"""Unpacking the tiny models: only what is missing, whole or not at all, and Stop ends it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from mulan_nodes.mulan.boundary.files import UnwritableError, WholeFile
from mulan_nodes.mulan.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from mulan_nodes.mulan.tiny_models import packs, unpacking
from mulan_nodes.mulan.tiny_models.unpacking import TINY_MODELS, version_of, write_tiny_models
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


@pytest.mark.parametrize("models", [TINY_MODELS, TINY_MODELS[-3:]], ids=["all", "small files"])
def test_stop_ends_it_and_leaves_no_part_of_a_file(models, paths, tmp_path, stop_soon):
    """Between two files too: a small one is written faster than Stop is looked for."""
    from comfy.model_management import InterruptProcessingException

    timer, _ = stop_soon
    paths = {model: paths[model] for model in models}
    with pytest.raises(InterruptProcessingException):
        write_tiny_models(paths, lambda index, *_: index or timer.run())
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) < len(paths) and all(path in paths.values() and version_of(path) for path in written)


def test_an_error_names_the_file_and_its_folder(paths, tmp_path):
    (tmp_path / "visionllm").write_text("a file where the folder should be")
    with pytest.raises(UnwritableError, match=r"tiny_visionllm\.safetensors cannot be written to .*visionllm"):
        write_tiny_models({unpacking.VISIONLLM: paths[unpacking.VISIONLLM]})


def test_packs_are_small():
    sizes = [packs.pack_path(name).stat().st_size for name in {model.pack for model in TINY_MODELS}]
    assert sum(sizes) < 9_000_000


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


@pytest.fixture
def given(monkeypatch) -> list[int]:
    """How many bytes each call gives a file to write."""
    sizes, write = [], WholeFile.write

    def counting(self, data, start=None):
        sizes.append(memoryview(data).nbytes)
        write(self, data, start)

    monkeypatch.setattr(WholeFile, "write", counting)
    return sizes


def test_zeros_of_a_new_file_are_not_written(tmp_path, given):
    path, weights = tmp_path / "zeros.safetensors", torch.zeros(4096, 1024)
    weights[7] = 1.0
    with SafetensorsWriter(path, {"weights": TensorSpec(torch.float32, (4096, 1024))}, {}) as writer:
        for first in range(0, 4096, 512):
            writer.write("weights", weights[first : first + 512], first)
    assert torch.equal(load_file(path)["weights"], weights)
    assert 512 * 4096 <= sum(given) < 513 * 4096 < path.stat().st_size


def test_most_of_a_tiny_checkpoint_is_not_written(paths, given):
    path = paths[unpacking.CHECKPOINT]
    write_tiny_models({unpacking.CHECKPOINT: path})
    assert sum(given) < 0.25 * path.stat().st_size
