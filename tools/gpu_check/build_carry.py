"""Packs what a GPU machine without network needs into one archive: the repository, ComfyUI's code, and the packages
beyond torch, transformers and numpy, which pip downloads.

python tools/gpu_check/build_carry.py COMFYUI ARCHIVE [--without-repository]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST = 64 * 10**6  # bytes of the archive
PYTHON = "3.12"  # of the GPU machine
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PACKAGES = """
    alembic==1.20.1 annotated_types==0.8.0 blake3==1.0.11 comfy_aimdo==0.4.11 comfy_kitchen==0.2.26
    importlib_metadata==10.2.0 lazy_importer==0.1.0 mako==1.4.3 pydantic==2.14.3 pydantic_core==2.50.4
    pydantic_settings==2.16.3 python_dotenv==1.2.4 simpleeval==1.0.8 spandrel==0.4.2 sqlalchemy==2.1.9 torchsde==0.2.6
    trampoline==0.1.2 typing_inspection==0.4.5 websocket_client==1.9.2
""".split()

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


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui", type=Path, metavar="COMFYUI")
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="a .tar.xz")
    parser.add_argument("--without-repository", action="store_true", help="for a machine that has its files")
    options = parser.parse_args(arguments)
    options.archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.archive.parent) as folder:
        stage = Path(folder) / "stage"
        download(Path(folder) / "wheels")
        unpack_wheels(Path(folder) / "wheels", stage / "site")
        write_av(stage / "site" / "av")
        copy_comfyui(options.comfyui, stage / "comfyui")
        if not options.without_repository:
            copy_repository(stage / "repository")
        with tarfile.open(options.archive, "w:xz") as members:
            members.add(stage, ".")
    size = options.archive.stat().st_size
    print(f"{options.archive}: {size / 1e6:.1f} MB")
    return 0 if size <= MOST else 1


def download(wheels: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(wheels)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *PACKAGES], check=True)


def copy_repository(target: Path) -> None:
    """Copy what git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, file)


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
    sys.exit(main(sys.argv[1:]))
