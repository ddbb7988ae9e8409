"""Checkpoints that are converted while they come from the hub, against a stand-in of it on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mulan_nodes.mulan.checkpoints.tensor_files import open_tensors
from mulan_nodes.mulan.conversion.converters import convert
from mulan_nodes.mulan.conversion.hub import Retry
from mulan_nodes.mulan.conversion.published import plan_download
from mulan_nodes.tests import hub_standin
from mulan_nodes.tools.random_checkpoints import internvl, internvl_chat

QUICK = Retry(attempts=3, first=0.01, longest=0.02)
ENCODER = "OpenGVLab/InternVL-14B-224px"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_standin.running() as running:
        hub_standin.use(running, monkeypatch, tmp_path / "cache")
        yield running


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Full layouts in small, as they are published: in one file, in shards, in files of torch.save."""
    root = tmp_path_factory.mktemp("published")
    return {
        "internvl": internvl.checkpoint(root / "InternVL-14B-224px", shards="safetensors"),
        "internvl bin": internvl.checkpoint(root / "bin" / "InternVL-14B-224px", shards="bin"),
        "chat": internvl_chat.checkpoint(root / "InternVL3-1B"),
        "chat hf": internvl_chat.checkpoint(root / "InternVL3-1B-hf", layout="hf"),
    }


def download(source, target, weight_format="int8", progress=lambda _: None, **options):
    with plan_download(source, target, weight_format, retry=QUICK, **options) as plan:
        return plan.run(progress)


def same(ours: Path, wanted: Path) -> bool:
    ours_tensors, wanted_tensors = load_file(ours), load_file(wanted)
    return ours_tensors.keys() == wanted_tensors.keys() and all(
        ours_tensors[name].dtype == wanted_tensors[name].dtype
        and torch.equal(ours_tensors[name].view(torch.uint8), wanted_tensors[name].view(torch.uint8))
        if ours_tensors[name].ndim
        else torch.equal(ours_tensors[name].float(), wanted_tensors[name].float())
        for name in wanted_tensors
    )


@pytest.mark.parametrize("weight_format", ["int8", "fp8", "fp16"])
@pytest.mark.parametrize("which", ["internvl", "internvl bin", "chat", "chat hf"])
def test_what_comes_from_the_hub_is_what_the_folder_converts_to(hub, checkpoints, tmp_path, which, weight_format):
    local, remote = tmp_path / "local", tmp_path / "remote"
    local.mkdir(), remote.mkdir()
    wanted = convert(checkpoints[which], local, weight_format)
    (result,) = download(hub.add(f"OpenGVLab/{checkpoints[which].name}", checkpoints[which]), remote, weight_format)
    for ours, theirs in zip((result, *result.beside), (wanted, *wanted.beside), strict=True):
        assert ours.path.name == theirs.path.name and same(ours.path, theirs.path)
        with safe_open(ours.path, "pt") as file:
            assert file.metadata()["revision"] == "a" * 40
    assert sorted(path.name for path in remote.iterdir()) == sorted(path.name for path in local.iterdir())


def test_only_the_bytes_of_what_is_written_come(hub, checkpoints, tmp_path):
    hub.add(ENCODER, checkpoints["internvl"])
    with plan_download("MuLan text encoder", tmp_path, "int8", retry=QUICK) as plan:
        before, wanted = hub.sent("-of-"), plan.size
        (result,) = plan.run()
    stored = open_tensors(checkpoints["internvl"])
    text = [n for n in stored.shapes if n.startswith("qllama.model.") and "cross_attn" not in n] + ["text_projection"]
    assert wanted == sum(stored.read(name).nbytes for name in text) == hub.sent("-of-") - before
    assert not result.beside and result.folder == "text_encoders"
    assert len(hub.requests) < 60
