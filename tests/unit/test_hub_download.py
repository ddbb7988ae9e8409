"""Checkpoints that are converted while they come from the hub, against a stand-in of it on loopback."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.boundary.files import UnwritableError
from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError, open_tensors
from mulan_nodes.mulan.conversion import download_progress
from mulan_nodes.mulan.conversion.converters import convert
from mulan_nodes.mulan.conversion.download_progress import DownloadProgress
from mulan_nodes.mulan.conversion.hub import HubError, Retry
from mulan_nodes.mulan.conversion.hub_conversion import MODEL_FOLDERS
from mulan_nodes.mulan.conversion.published import KNOWN, find_made, plan_download
from mulan_nodes.tests import hub_standin
from mulan_nodes.tools import comfy_server, comfyui
from mulan_nodes.tools.bench.weights import sentencepiece_model
from mulan_nodes.tools.random_checkpoints import internvl, internvl_chat, visionllm

QUICK = Retry(attempts=3, first=0.01, longest=0.02)
MANIFESTS = Path(__file__).resolve().parents[1] / "parity" / "manifests" / "mulan"
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
        "visionllm": visionllm.checkpoint(root / "VisionLLMv2", mappers=True),
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
@pytest.mark.parametrize("which", ["internvl", "internvl bin", "chat", "chat hf", "visionllm"])
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


# --- connections that fail ---


@pytest.mark.parametrize(
    "faults",
    [
        [("-of-", 503)] * 2,
        [("-of-", (429, {"Retry-After": "1"}))],
        [("store", "cut")] * 6,
        [("/api/", 503), ("/api/", (429, {"Retry-After": "0"}))],
        [("store", 500), ("resolve", 502), ("store", "cut")],
        [("config.json", "cut"), ("tokenizer.model", 504)],
    ],
    ids=str,
)
def test_what_fails_is_asked_again_from_where_it_stopped(hub, checkpoints, tmp_path, faults):
    hub.add(ENCODER, checkpoints["internvl"])
    (wanted,) = download("MuLan text encoder", _made(tmp_path / "wanted"))
    sent, hub.faults, hub.cut_after = hub.sent("-of-"), list(faults), 900
    (result,) = download("MuLan text encoder", _made(tmp_path / "ours"))
    assert not hub.faults and same(result.path, wanted.path)
    assert hub.sent("-of-") - sent == sent, "nothing comes twice"


def test_as_long_as_the_hub_asks_is_waited(hub, checkpoints, tmp_path):
    hub.add(ENCODER, checkpoints["internvl"])
    with plan_download("MuLan text encoder", tmp_path, retry=QUICK) as plan:
        hub.faults = [("-of-", (429, {"Retry-After": "2"}))]
        start = time.monotonic()
        plan.run()
    assert time.monotonic() - start >= 2


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ([("store", "size")], "not what the hub said: it has"),
        ([("resolve", "linked")], "not what the hub said: it has"),
        ([("-of-", "commit")], "revision ffffffffffff came instead"),
        ([("store", "whole")] * 2, "does not send parts of files"),
        ([("store", 404)], "status 404"),
        ([("-of-", (429, {"Retry-After": "7200"}))], "asks to wait 120 minutes"),
        ([("-of-", 503)] * 3, "status 503, 3 times in a row. Check the connection and start again"),
    ],
    ids=str,
)
def test_what_cannot_be_repaired_is_an_error_that_says_what_happened(hub, checkpoints, tmp_path, faults, says):
    hub.add(ENCODER, checkpoints["internvl"])
    with plan_download("MuLan text encoder", tmp_path, retry=QUICK) as plan:
        hub.faults = list(faults)
        with pytest.raises(HubError, match=says):
            plan.run()
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_list_of_files_that_is_wrong_is_refused_before_anything_is_written(hub, checkpoints, tmp_path):
    hub.add(ENCODER, checkpoints["internvl"])
    hub.sizes["model-00001-of-00002.safetensors"] = 12345678
    with pytest.raises(HubError, match="the hub's list says 12,345,678"):
        plan_download(ENCODER, tmp_path, retry=QUICK)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nobody/nothing", "has no repository nobody/nothing, or it is private"),
        (f"{ENCODER}@abc", "has no revision abc"),
        (f"{ENCODER}/other.pth", "has no file other.pth"),
        ("not a repository", "neither a file or folder here nor a repository"),
    ],
)
def test_a_wrong_name_is_refused(hub, checkpoints, tmp_path, source, says):
    hub.add(ENCODER, checkpoints["internvl"])
    with pytest.raises(HubError, match=says):
        plan_download(source, tmp_path, retry=QUICK)


@pytest.mark.parametrize(
    ("where", "fault", "says"),
    [
        (
            "resolve",
            (403, {"X-Error-Code": "GatedRepo"}),
            "status 403.: it asks for permission: accept its terms on its page there, and .*HF_TOKEN",
        ),
        ("resolve", 401, "status 401.: log in with `hf auth login` or set HF_TOKEN"),
        ("/api/", 403, "status 403.: its owner has to permit it"),
        ("/api/", (429, {"Retry-After": "3600"}), "asks to wait 60 minutes .status 429.. Start again then"),
    ],
    ids=str,
)
def test_a_hub_that_refuses_says_what_to_do(hub, checkpoints, tmp_path, where, fault, says):
    hub.add(ENCODER, checkpoints["internvl"])
    hub.faults = [(where, fault)]
    with pytest.raises(HubError, match=says):
        plan_download(ENCODER, tmp_path, retry=QUICK)


def test_no_network_at_all_is_said(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot be downloaded.*and it is not in the cache"):
        plan_download(ENCODER, tmp_path, retry=QUICK)


def test_every_model_of_the_list_is_one_file_that_is_found_again(hub, checkpoints, tmp_path):
    hub.add(ENCODER, checkpoints["internvl"])

    def models(folder: str) -> dict[str, Path]:
        asked.append(folder)
        return {f"sub/{path.name}": path for path in _made(tmp_path / folder).glob("*.*")}

    asked: list[str] = []
    for name, folder in (("MuLan text encoder", "text_encoders"), ("InternVL-C and -G", "internvl")):
        assert find_made(name, "int8", models) is None
        (result,) = download(name, lambda kind: _made(tmp_path / kind))
        assert result.folder == folder and not result.beside
        assert find_made(name, "int8", models) == f"sub/{result.path.name}" and find_made(name, "fp8", models) is None
        assert asked.pop() == folder
    adapter = "MuLan adapter sd15_aesthetic"
    assert find_made(adapter, "int8", models) is None
    (tmp_path / "mulan" / "sd15_aesthetic.pth").write_bytes(b"as the editor downloads it")
    assert find_made(adapter, "int8", models) == "sub/sd15_aesthetic.pth"
    assert {known.folder for known in KNOWN.values()} <= set(MODEL_FOLDERS)


def test_a_repository_of_something_else_is_refused_in_words_about_it(hub, tmp_path):
    folder = _made(tmp_path / "other")
    save_file({"x": torch.zeros(4)}, folder / "model.safetensors")
    hub.add("some/thing", folder)
    with pytest.raises(WrongFileError, match=r"thing \(of some/thing at revision aaaa.*no file this pack knows"):
        plan_download("some/thing", tmp_path, retry=QUICK)


# --- interruptions ---


@pytest.mark.parametrize(("size", "shown"), [(34_700_000, "34.7 MB"), (13_368_057_856, "13.37 GB")])
def test_progress_is_told_in_a_unit_that_shows_it(size, shown):
    progress = DownloadProgress(12_300_000, size, 1.4e6, 75, 0, 1)
    assert str(progress) == f"12.3 MB of {shown}, 1.4 MB/s, 1 min 15 s left"


class Stopped(Exception):
    pass


@pytest.mark.parametrize("which", ["internvl", "internvl bin", "chat"])
def test_an_interrupted_download_goes_on_where_it_stopped(hub, checkpoints, tmp_path, which, monkeypatch):
    source = hub.add(f"OpenGVLab/{checkpoints[which].name}", checkpoints[which])
    wanted = convert(checkpoints[which], _made(tmp_path / "wanted"))
    ours, rounds = _made(tmp_path / "ours"), 0
    monkeypatch.setattr(download_progress, "LOOK", 0)
    left = []
    while True:
        rounds += 1

        def stop_later(done, limit=8 * rounds):
            if limit <= done.tensors < done.all_tensors:
                raise Stopped

        try:
            with plan_download(source, ours, retry=QUICK) as plan:
                left.append(plan.size)
                (result,) = plan.run(stop_later)
            break
        except Stopped:
            assert not list(ours.glob("*.safetensors")) and rounds < 200
    assert rounds > 2 and left == sorted(left, reverse=True) and left[-1] < left[0]
    for mine, theirs in zip((result, *result.beside), (wanted, *wanted.beside), strict=True):
        assert same(mine.path, theirs.path)
    assert sorted(path.suffix for path in ours.iterdir()) == [".safetensors"] * (1 + len(result.beside))


def test_a_killed_download_goes_on_and_keeps_its_revision(hub, checkpoints, tmp_path, monkeypatch):
    hub.add(ENCODER, checkpoints["internvl"], commit="b" * 40)
    monkeypatch.setattr(download_progress, "LOOK", 0)

    def stop(done):
        if done.tensors > 8:
            raise Stopped

    with pytest.raises(Stopped):
        download("MuLan text encoder", tmp_path, progress=stop)
    asked = len(hub.requests)
    (part,) = tmp_path.glob("*.part")
    with plan_download("MuLan text encoder", tmp_path, retry=QUICK) as plan:
        assert "tensors from an earlier run" in plan.describe()
        assert any(f"/revision/{'b' * 40}" in each.path for each in hub.requests[asked:])
        left = plan.size
    # the repository has moved on, and its old commit is gone: what is there is of no use
    hub.add(ENCODER, checkpoints["internvl"], commit="c" * 40)
    with plan_download("MuLan text encoder", tmp_path, retry=QUICK) as plan:
        assert plan.size > left and plan.repository.revision == "c" * 40
        (result,) = plan.run()
    assert not part.exists() and same(result.path, convert(checkpoints["internvl"], _made(tmp_path / "wanted")).path)


@pytest.mark.parametrize("state", ["slow", "stalled", "waiting"])
def test_stop_is_heard_soon(hub, checkpoints, tmp_path, state):
    hub.add(ENCODER, checkpoints["internvl"])
    start = None

    def stop(_=None):
        nonlocal start
        now = time.monotonic()
        start = start or now
        if now - start > 1:
            stop.at = now
            raise Stopped

    with plan_download("MuLan text encoder", tmp_path, retry=QUICK) as plan:
        hub.speed = 10000 if state == "slow" else 0
        hub.faults = {"slow": [], "stalled": [("store", "stall")], "waiting": [("-of-", (429, {"Retry-After": "60"}))]}[
            state
        ]
        with pytest.raises(Stopped):
            plan.run(stop)
    assert stop.at - start < 3 and time.monotonic() - stop.at < 2  # a busy machine takes its time; unheard: 10 or more


# --- what is said before ---


def test_too_little_room_is_refused_with_the_plan_before_anything_is_downloaded(
    hub, checkpoints, tmp_path, monkeypatch
):
    hub.add(ENCODER, checkpoints["internvl"])
    with plan_download("MuLan text encoder", tmp_path, retry=QUICK) as plan:
        sent = hub.sent()
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=plan.disk - 1))
        with pytest.raises(UnwritableError, match="(?s)make room.*Download .* of .* from OpenGVLab.*needed") as error:
            plan.run()
        assert hub.sent() == sent and plan.describe() in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_published_encoder_takes_13_of_28_gigabytes(hub, tmp_path):
    """The full layout of InternVL-14B-224px in six files that are empty but for their headers."""
    tensors = {}
    for name in ("internvl_14b_full_checkpoint.json", "internvl_text_14b_224px.json"):
        tensors |= json.loads((MANIFESTS / name).read_text("utf-8"))["tensors"]
    hub.add(ENCODER, sparse_folder(tmp_path / "InternVL-14B-224px", tensors, 6))
    ours = _made(tmp_path / "ours")
    with plan_download("MuLan text encoder", ours, "int8", retry=QUICK) as plan:
        assert plan.repository_size == pytest.approx(27.67e9, rel=1e-3)
        assert plan.size == 13_368_057_856
        assert plan.disk == pytest.approx(6.7e9, rel=0.02)
        assert "Download 13.37 GB of 27.67 GB" in plan.describe()
    with plan_download("InternVL-C and -G", lambda _: ours, "int8", retry=QUICK) as plan:
        assert [output.folder for output in plan.outputs] == ["internvl"] and plan.size == 13_898_945_538
    assert hub.sent() < 20e6 and not list(ours.iterdir())


def sparse_folder(folder: Path, tensors: dict[str, dict], shards: int) -> Path:
    folder.mkdir()
    names, index = sorted(tensors), {}
    for number in range(shards):
        part = names[len(names) * number // shards : len(names) * (number + 1) // shards]
        header, at = {}, 0
        for name in part:
            end = at + 2 * math.prod(tensors[name]["shape"])
            header[name] = {"dtype": "F16", "shape": tensors[name]["shape"], "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        with open(folder / shard, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        index |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(49954))
    return folder


# --- weights ---


def test_weights_that_are_no_numbers_are_refused(hub, checkpoints, tmp_path):
    folder = tmp_path / "InternVL3-1B"
    shutil.copytree(checkpoints["chat"], folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["mlp1.1.weight"][3, 3] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WrongFileError, match="OpenGVLab/InternVL3-1B at revision.*mlp1.1.weight holds.*NaN"):
        download(hub.add("OpenGVLab/InternVL3-1B", folder), _made(tmp_path / "ours"))


def test_values_too_large_for_float16_become_bfloat16_without_reading_all_twice(hub, checkpoints, tmp_path):
    folder = tmp_path / "InternVL-14B-224px"
    shutil.copytree(checkpoints["internvl"], folder)
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        for name in [name for name in tensors if name.endswith(("ls1", "norm1.weight"))][:2]:
            tensors[name] = tensors[name].float() + 1e6
        save_file(tensors, shard)
    wanted = convert(folder, _made(tmp_path / "wanted"))
    hub.add(ENCODER, folder)
    with plan_download(ENCODER, _made(tmp_path / "ours"), retry=QUICK) as plan:
        headers, size = hub.sent("-of-"), plan.size
        (result,) = plan.run()
    assert same(result.beside[0].path, wanted.beside[0].path) and same(result.path, wanted.path)
    assert torch.bfloat16 in {tensor.dtype for tensor in load_file(result.beside[0].path).values()}
    assert hub.sent("-of-") - headers < 1.5 * size


# --- mirrors, tokens, the cache ---


def test_a_token_reaches_the_hub_and_not_the_store(hub, checkpoints, tmp_path, monkeypatch):
    hub.private = "hf_secret"
    source = hub.add("OpenGVLab/InternVL3-1B", checkpoints["chat"])
    with pytest.raises(HubError, match="private"):
        plan_download(source, tmp_path, retry=QUICK)
    monkeypatch.setenv("HF_TOKEN", hub.private)
    download(source, tmp_path)
    assert all(each.token is None for each in hub.requests if each.path.startswith("/store"))


def test_files_in_the_cache_are_not_downloaded(hub, checkpoints, tmp_path, monkeypatch):
    source = hub.add("OpenGVLab/InternVL3-1B", checkpoints["chat"])
    snapshot = tmp_path / "cache" / "models--OpenGVLab--InternVL3-1B" / "snapshots" / ("a" * 40)
    shutil.copytree(checkpoints["chat"], snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    with plan_download(source, tmp_path, retry=QUICK) as plan:
        assert plan.size == 0
        (result,) = plan.run()
    assert hub.sent("resolve") == hub.sent("store") == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (offline,) = download(source, _made(tmp_path / "offline"))
    assert same(offline.path, result.path)
    with pytest.raises(HubError, match="offline mode is on .HF_HUB_OFFLINE., and it is not in the cache"):
        plan_download(ENCODER, tmp_path, retry=QUICK)


# --- a command for a person ---


def command(*arguments, cwd: Path, **variables) -> subprocess.CompletedProcess:
    pack = Path(comfyui.folder(), "custom_nodes", comfy_server.pack_name(comfyui.folder()))
    return subprocess.run(
        [sys.executable, "-I", pack / "convert.py", *map(str, arguments)],  # -I: as Windows portable runs it
        cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_command_gets_a_model_from_any_folder_by_a_mirror(hub, checkpoints, tmp_path):
    source = hub.add("OpenGVLab/InternVL3-1B", checkpoints["chat"])
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": ""}
    planned = command(source, tmp_path, "--dry-run", cwd=tmp_path, **variables)
    assert planned.returncode == 0, planned.stderr
    assert "Download" in planned.stdout and "InternVL3-1B_int8.safetensors" in planned.stdout
    assert not list(tmp_path.glob("*.safetensors"))
    made = command(source, tmp_path, "--format", "fp16", cwd="/", **variables)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "InternVL3-1B_fp16.safetensors").is_file()
    local = command(checkpoints["chat"], "--dry-run", cwd=tmp_path, **variables)
    assert str(comfyui.folder() / "models" / "internvl_chat" / "InternVL3-1B_int8.safetensors") in local.stdout
    assert "MuLan text encoder" in command("--list", cwd=tmp_path).stdout
    wrong = command("nobody/nothing", tmp_path, cwd=tmp_path, **variables)
    assert wrong.returncode == 1 and "has no repository nobody/nothing" in wrong.stderr


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
