"""The GPU check: what starts it, its table, what its archive holds. Its sections run on the CPU by its script."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from mulan_nodes.tools.gpu_check import build_carry, gpu_check, report

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tools" / "gpu_check"


@pytest.fixture
def started(dev, monkeypatch, tmp_path):
    """What dev.py becomes, and with which variables, for a command line."""

    def start(*arguments: str, has_venv: bool = True, has_comfyui: bool = True) -> tuple[list, dict[str, str]]:
        became = []
        comfyui = tmp_path / f"ComfyUI {has_comfyui}"
        if has_comfyui:
            comfyui.mkdir(exist_ok=True)
            for name in ("main.py", "comfyui_version.py"):
                (comfyui / name).write_text("")
        monkeypatch.setattr(dev, "PYTHON", Path(sys.executable) if has_venv else tmp_path / "no python")
        monkeypatch.setattr(dev, "setup", lambda _: became.append("setup"))
        monkeypatch.setattr(dev, "go_on_inside", became.append)
        monkeypatch.setattr(sys, "argv", ["dev.py", "bench", *arguments, "--comfyui", str(comfyui)])
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", {})
            dev.main()
            return became, dict(os.environ)

    return start


@pytest.mark.parametrize("has_venv", [True, False])
def test_it_starts_without_setting_anything_up(started, has_venv, tmp_path):
    became, variables = started("--gpu", "--quick", "--device", "cpu", has_venv=has_venv)
    assert became == [["/bin/bash", ROOT / "tools" / "gpu_check" / "gpu_check.sh"]]
    assert variables["PY"] == sys.executable and variables["COMFYUI_DIR"] == str(tmp_path / "ComfyUI True")
    assert variables["GPU_DEVICE"] == "cpu" and variables["QUICK"] == "1" and "ONLY" not in variables


def test_without_a_comfyui_or_an_archive_it_sets_up_first(started):
    assert started("--gpu", has_comfyui=False)[0][0] == "setup"


@pytest.mark.parametrize("model", ["visionllm", "internvl"])
def test_one_model_alone(started, model):
    sections = started("--gpu", f"--{model}")[1]["ONLY"].split()
    assert model in sections and set(sections) <= set(gpu_check.SECTIONS)


def test_the_readme_has_every_section():
    sections = (FOLDER / "README.md").read_text("utf-8").split("## Variables")[0]
    assert re.findall(r"^\| (\w+) \| ", sections, re.M)[1:] == [*gpu_check.SECTIONS]


def test_the_table_quotes_what_was_measured_and_tells_what_was_not():
    results = {
        "quick": False,
        "machine": {"rc": 0, "rows": [{"name": "versions", "card": "A card", "torch": "2.13"}]},
        "sd15": {
            "rc": 0,
            "rows": [
                {"name": "SD1.5 and MuLan int8, 512 x 512", "peak_GiB": 9.87, "upstream_GiB": 25},
                {"name": "SD1.5 and MuLan fp16, 512 x 512", "error": "out of | memory"},
            ],
        },
        "mulan": {"rc": "time", "rows": [{"name": "int8 encode 12 x 80", "s": 0.1234, "floor_s": 0.002}]},
        "chat": {"skipped": "3 s left"},
    }
    page = report.markdown(results)
    assert "Measured on A card, torch 2.13" in page and "rehearsal" not in page
    assert "| SD1.5 + MuLan int8, 512 x 512: peak | 9.9 GiB (upstream's pipeline: 25) |" in page
    assert "| 12 prompts in int8 | 0.123 s (reading the weights once: 0.002) |" in page
    assert "SD1.5 + MuLan fp16" not in page and "out of / memory" in page
    assert "### mulan (ended by time)" in page and "### chat (3 s left)" in page
    assert "rehearsal" in report.markdown({**results, "quick": True})


def test_the_archive_holds_the_repository_and_a_comfyui_without_large_files(tmp_path, comfyui_folder):
    build_carry.copy_repository(tmp_path / "repository")
    assert (tmp_path / "repository" / "tools" / "gpu_check" / "gpu_check.sh").is_file()
    build_carry.copy_comfyui(comfyui_folder, tmp_path / "comfyui")
    assert (tmp_path / "comfyui" / "main.py").is_file() and (tmp_path / "comfyui" / "comfy" / "ops.py").is_file()
    assert not list((tmp_path / "comfyui").rglob("*.pyc"))
