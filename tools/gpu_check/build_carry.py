"""Packs what a GPU machine without network needs: ComfyUI's code, and packages beyond torch, transformers and numpy.

python tools/gpu_check/build_carry.py COMFYUI WHEELS CARRY    -> CARRY/comfyui.tar.xz and CARRY/site.tar.xz
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

LARGEST = 600_000  # bytes of a ComfyUI file, but for the tokenizer of SD1
NOT_NEEDED = ("/backends/hip/_C", "aimdo_rocm.so")  # AMD's
FILES = (
    "main.py",
    "server.py",
    "nodes.py",
    "execution.py",
    "folder_paths.py",
    "comfyui_version.py",
    "cuda_malloc.py",
    "hook_breaker_ac10a0.py",
    "latent_preview.py",
    "node_helpers.py",
    "protocol.py",
    "alembic.ini",
    "requirements.txt",
)
FOLDERS = (
    "comfy",
    "comfy_extras",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_execution",
    "comfy_config",
    "app",
    "api_server",
    "utils",
    "middleware",
    "alembic_db",
)
EMPTY_FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
# ComfyUI imports PyAV when it starts, and no graph here reads video: module -> the names that are imported.
AV = {
    "__init__": ("AudioFrame", "VideoFrame", "AudioResampler"),
    "container/__init__": ("InputContainer",),
    "subtitles/__init__": (),
    "subtitles/stream": ("SubtitleStream",),
    "video/__init__": (),
    "video/reformatter": ("ColorRange",),
    "audio/__init__": (),
    "audio/resampler": ("AudioResampler",),
    "audio/frame": ("AudioFrame",),
    "error": ("FFmpegError",),
}
AV_ANY_NAME = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
"""
AV_TOP = """
class logging:
    ERROR = 0

    @staticmethod
    def set_level(*_):
        pass

from . import audio, container, subtitles, video
"""


def main(comfyui: Path, wheels: Path, carry: Path) -> None:
    stage = carry / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    unpack_wheels(wheels, stage / "site")
    write_av(stage / "site" / "av")
    copy_comfyui(comfyui, stage / "comfyui")
    for name in ("comfyui", "site"):
        archive = carry / f"{name}.tar.xz"
        with tarfile.open(archive, "w:xz") as members:
            members.add(stage / name, ".")
        print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")
    shutil.rmtree(stage)


def unpack_wheels(wheels: Path, site: Path) -> None:
    site.mkdir(parents=True)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as members:
            for name in members.namelist():
                if not any(part in name for part in NOT_NEEDED):
                    members.extract(name, site)


def write_av(folder: Path) -> None:
    """Write a stand-in for PyAV."""
    for module, names in AV.items():
        file = folder / f"{module}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        classes = "".join(f"class {name}:\n    pass\n" for name in names)
        file.write_text(classes + (AV_ANY_NAME if names else "") + (AV_TOP if module == "__init__" else ""), "utf-8")


def copy_comfyui(comfyui: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in FILES:
        shutil.copy(comfyui / name, target / name)
    for name in FOLDERS:
        shutil.copytree(comfyui / name, target / name, ignore=_left_out)
    for name in EMPTY_FOLDERS:
        (target / name).mkdir()
    web = target / "empty_web"
    web.mkdir()
    (web / "index.html").write_text("<html></html>", "utf-8")


def _left_out(folder: str, names: list[str]) -> list[str]:
    def is_large(name: str) -> bool:
        file = Path(folder, name)
        return "sd1_tokenizer" not in folder and file.is_file() and file.stat().st_size > LARGEST

    return [name for name in names if name == "__pycache__" or name.endswith(".pyc") or is_large(name)]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
