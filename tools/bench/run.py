"""What `dev.py bench` does: files, processes, rounds, goals, output."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import torch

from ... import dev
from ..comfyui import open_comfyui
from . import report, weights
from .cases import CASES
from .weights import Sizes
from .worker import Worker, WorkerFailed

HERE = Path(__file__).resolve().parent
STEPS = 10
SHORT_REPEAT = 3  # measurements a round of one or two prompts, which other programs disturb more
ROWS = {
    "one": 80,
    "two": 160,
    "empty_negative": 80,
    "other_negative": 160,
    "twelve": 960,
    "twelve_as_list": 960,
    "twelve_guided": 960,
}
EQUAL = 2e-5  # as the parity tests'


@dataclass(frozen=True)
class Loading:
    """A way to load that is measured in a fresh process."""

    side: str  # "mulankit" or "ours"
    file: str  # a name of `write_files`
    dtype: str = "float32"  # of mulankit's pipeline


LOADINGS = {
    "mulankit": Loading("mulankit", "published"),
    "mulankit_half": Loading("mulankit", "published", "float16"),
    "folder": Loading("ours", "published"),
    "fp16": Loading("ours", "fp16"),
    "int8": Loading("ours", "int8"),
    "fp8": Loading("ours", "fp8"),
}


FORMS = ("fp16", "int8", "int4", "fp8")


@dataclass(frozen=True)
class Bench:
    """Where things are, and how often they are measured."""

    comfyui: Path
    cache: Path
    output: Path
    sizes: Sizes
    repeat: int
    threads: int
    upstream_python: Path | None = None
    started: float = field(default_factory=time.monotonic)

    def say(self, line: str) -> None:
        print(f"[{time.monotonic() - self.started:5.0f} s] {line}", flush=True)

    @property
    def environment(self) -> dict[str, str]:
        threads = str(self.threads)
        return {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "HF_HOME": str(self.cache / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONUTF8": "1",
        }

    @property
    def log(self) -> Path:
        return self.output / "bench.log"

    @property
    def figures(self) -> Path:
        return self.output / "bench.json"

    @property
    def table(self) -> Path:
        return self.output / "bench.md"

    def keep(self, **figures) -> dict:
        """Write what is measured so far beside what is there. Gives all of it."""
        known = json.loads(self.figures.read_text("utf-8")) if self.figures.is_file() else {}
        known |= figures
        self.figures.write_text(json.dumps(known, indent=1), "utf-8")
        self.table.write_text(report.markdown(known), "utf-8")
        return known

    def mulankit(self, text_encoder: Path, adapter: Path, dtype: str) -> Worker:
        command = [
            self.upstream_python,
            HERE / "upstream.py",
            "--text-encoder",
            text_encoder,
            "--adapter",
            adapter,
            "--dtype",
            dtype,
        ]
        return Worker("mulankit", command, self.log, self.environment)

    def ours(self, text_encoder: Path, adapter: Path, *comfyui_arguments: str, free_before: int = 0) -> Worker:
        command = [
            sys.executable,
            HERE / "ours.py",
            "--comfyui",
            self.comfyui,
            "--text-encoder",
            text_encoder,
            "--adapter",
            adapter,
            "--free-before",
            free_before,
            "--comfyui-arguments",
            *comfyui_arguments,
        ]
        return Worker("ours", command, self.log, self.environment)


def main(arguments: list[str], comfyui: Path, cache: Path, output: Path) -> int:
    options = parse(arguments)
    output.mkdir(exist_ok=True)
    sizes = Sizes(options.layers or (1 if options.quick else 2))
    if options.quick:
        sizes = replace(sizes, feed_forward=512, vocabulary=1014)
    bench = Bench(comfyui, cache, output, sizes, options.repeat, options.threads)
    bench.log.write_bytes(b"")
    try:
        measure(replace(bench, upstream_python=mulankit_environment(cache / "mulankit")), options.profile)
    except WorkerFailed as failure:
        sys.exit(str(failure))
    print(
        f"\n{bench.table.read_text('utf-8')}\nThe table: {os.path.relpath(bench.table)}\nEvery figure: "
        f"{os.path.relpath(bench.figures)}"
    )
    return 0


def mulankit_environment(folder: Path) -> Path:
    """Make an environment with mulankit 1.0.2 and the versions it needs, unless it is there; return its Python."""
    wanted = HERE / "requirements.txt"
    python, installed = folder / dev.PYTHON.relative_to(dev.VENV), folder / "installed.txt"
    if not installed.is_file() or installed.read_text("utf-8") != wanted.read_text("utf-8"):
        advice = (
            "It needs Python 3.11 or 3.12 and the Python package index: check the network and the disk (6 GB), "
            "and try again."
        )
        new = [dev.uv(), "venv", "--quiet", "--clear", "--python", ">=3.11,<3.13", folder]
        dev.step("making an environment for mulankit", new, advice)
        install = [dev.uv(), "pip", "install", "--python", python, "--requirement", wanted]
        dev.step("installing mulankit", install, advice)
        shutil.copy(wanted, installed)
    return python


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py bench", description="Measure this pack beside mulankit 1.0.2 on random weights: output/bench.md."
    )
    parser.add_argument("--layers", type=int, metavar="N", help="of the text encoder's 32 (default: 2)")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="rounds, of which the median counts (default: 3)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of either side (default: 1)")
    parser.add_argument(
        "--profile", action="store_true", help="show where the time goes for every goal, not only for those missed"
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="check and measure every model on this machine's GPU instead: output/gpu_check; with --device cpu it goes "
        "through the same steps without a GPU",
    )
    parser.add_argument(
        "--visionllm", action="store_true", help="measure VisionLLM v2 instead (dev.py bench --visionllm --help)"
    )
    parser.add_argument(
        "--internvl", action="store_true", help="measure InternVL instead (dev.py bench --internvl --help)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small text encoder: shows that everything runs; its figures mean nothing",
    )
    return parser.parse_args(arguments)


# --- beside mulankit, on the CPU


def measure(bench: Bench, profile_all: bool) -> None:
    open_comfyui("--cpu")  # for the converter's own measure of its error
    torch.set_num_threads(bench.threads)
    bench.say(
        f"files: a text encoder of {bench.sizes.layers} layers, {bench.sizes.width} wide, in "
        f"{os.path.relpath(bench.cache)}"
    )
    files = write_files(bench)
    about = {
        "machine": machine(),
        "sizes": asdict(bench.sizes),
        "threads": bench.threads,
        "repeat": bench.repeat,
        "files": sizes_of(files),
    }
    # What an earlier run measured of other sizes goes.
    bench.keep(**about, encoding=None, differences=None, sampling=None, loading=None, quantization=None, profiles={})
    bench.keep(**measure_encoding(bench, files))
    bench.keep(loading=measure_loading(bench, files))
    results = bench.keep(quantization=measure_quantization(bench, files))
    bench.keep(profiles=profiles(bench, files, report.GOALS if profile_all else report.missed(results)))


def write_files(bench: Bench) -> dict[str, Path]:
    """Everything that both sides load, written on first use."""
    folder = bench.cache / bench.sizes.name
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "float32": weights.write_published(
            folder / "published-float32", bench.sizes, torch.float32, vision=False, say=bench.say
        ),
        "published": weights.write_published(
            folder / "published", bench.sizes, torch.float16, vision=True, say=bench.say
        ),
        "adapter": weights.write_adapter(folder / "adapter", bench.sizes),
        "outliers": weights.write_published(
            folder / "outliers", bench.sizes, torch.float16, vision=False, say=bench.say, outliers=True
        ),
    }
    from mulan_nodes.mulan.conversion.converters import convert

    for source, prefix in (("published", ""), ("outliers", "outliers_")):
        for form in FORMS:
            name = f"{prefix}{form}"
            files[name] = folder / f"{name}.safetensors"
            if not files[name].exists():
                bench.say(f"  {files[name].name}")
                convert(files[source], files[name], form)
    return files


def sizes_of(files: dict[str, Path]) -> dict[str, int]:
    return {
        name: sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]))
        for name, path in files.items()
    }


def measure_encoding(bench: Bench, files: dict[str, Path]) -> dict:
    """Rounds of: every case by mulankit, by ours, and its floor; then ours on the smaller files; then the adapter while
    sampling.
    """
    variants = {"ours": files["float32"], **{name: files[name] for name in report.SMALLER}}
    short = ("one", "twelve")  # what is measured of the smaller files
    times: dict[str, dict[str, dict[str, list[float]]]] = {}
    differences, outputs = {}, {side: bench.output / f"bench_{side}.npy" for side in ("mulankit", "ours")}

    def note(side: str, case: str, took: dict) -> None:
        for clock in ("cpu", "wall"):
            times.setdefault(side, {}).setdefault(case, {}).setdefault(clock, []).append(took[clock])

    with ExitStack() as stack:
        bench.say("encoding: starting both sides")
        theirs = stack.enter_context(bench.mulankit(files["float32"], files["adapter"], "float32"))
        ours = {
            name: stack.enter_context(bench.ours(file, files["adapter"], "--cpu")) for name, file in variants.items()
        }
        for worker in (theirs, *ours.values()):
            worker.ask("load")
        for case in CASES:  # the first pass warms up and is compared
            theirs.ask("encode", case=case, output=str(outputs["mulankit"]))
            ours["ours"].ask("encode", case=case, output=str(outputs["ours"]))
            differences[case] = difference(*outputs.values())
            for name in variants:
                if name != "ours" and case in short:
                    ours[name].ask("encode", case=case)
            bench.say(f"  {CASES[case].title}: contexts differ by {differences[case]:.1e} at most")
        for output in outputs.values():
            output.unlink()
        for number in range(1, bench.repeat + 1):
            for case in CASES:
                for _ in range(1 if len(CASES[case].prompts) > 2 else SHORT_REPEAT):
                    note("mulankit", case, theirs.ask("encode", case=case))
                    note("ours", case, ours["ours"].ask("encode", case=case))
                    note("floor", case, ours["ours"].ask("floor", rows=ROWS[case]))
                    for name in variants:
                        if name != "ours" and case in short:
                            note(name, case, ours[name].ask("encode", case=case))
                ratio = times["ours"][case]["cpu"][-1] / times["mulankit"][case]["cpu"][-1]
                bench.say(
                    f"  round {number} of {bench.repeat}, {CASES[case].title}: {ratio:.2f}x of mulankit's CPU time"
                )
        checkpoint = tiny_checkpoint(bench)
        sampling = {
            "steps": STEPS,
            "mulankit": theirs.ask("sample", steps=STEPS),
            "ours": ours["ours"].ask("sample", steps=STEPS, checkpoint=str(checkpoint)),
        }
    medians = {
        side: {
            case: {clock: statistics.median(values) for clock, values in clocks.items()}
            for case, clocks in cases.items()
        }
        for side, cases in times.items()
    }
    return {"encoding": medians, "encoding_rounds": times, "differences": differences, "sampling": sampling}


def difference(one: Path, other: Path) -> float:
    """Largest absolute difference of two files of contexts. Raises WorkerFailed where it is no rounding."""
    a, b = np.load(one), np.load(other)
    largest = float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")
    if not largest <= EQUAL:
        raise WorkerFailed(
            f"the contexts differ by {largest:.1e}, {EQUAL:.0e} is allowed: the two sides do not compute the same, "
            "no time is worth comparing"
        )
    return largest


def tiny_checkpoint(bench: Bench) -> Path:
    """The tiny SD1.5 checkpoint that dev.py wrote into ComfyUI's models folder."""
    return bench.comfyui / "models" / "checkpoints" / "tiny_sd15.safetensors"


def measure_loading(bench: Bench, files: dict[str, Path]) -> dict:
    """Each way in a process of its own, as many times as rounds, in turn: load, first prompt, and memory before and
    after.
    """
    measured: dict[str, list[dict]] = {}
    for number in range(1, bench.repeat + 1):
        for name, way in LOADINGS.items():
            with starting(bench, files, way) as worker:
                before, load, first = worker.ask("imported"), worker.ask("load"), worker.ask("encode", case="one")
            measured.setdefault(name, []).append(
                {
                    "load_cpu": load["cpu"],
                    "load_wall": load["wall"],
                    "first_cpu": load["cpu"] + first["cpu"],
                    "first_wall": load["wall"] + first["wall"],
                    **{kind: first[kind] - before[kind] for kind in ("anonymous", "file")},
                    "peak": first["peak"] - before["anonymous"] - before["file"],
                }
            )
            bench.say(
                f"  round {number} of {bench.repeat}, {', '.join(report.WAYS[name])}: loaded in {load['cpu']:.2f} s "
                "of CPU time"
            )
    return {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in measured.items()
    }


def starting(bench: Bench, files: dict[str, Path], way: Loading) -> Worker:
    if way.side == "mulankit":
        return bench.mulankit(files[way.file], files["adapter"], way.dtype)
    return bench.ours(files[way.file], files["adapter"], "--cpu")


def measure_quantization(bench: Bench, files: dict[str, Path]) -> dict:
    """Relative error of the hidden states of each converted file, without outliers in the states and with them, the
    mean over the converter's sentences.
    """
    from mulan_nodes.mulan.checkpoints.tensor_files import open_streaming
    from mulan_nodes.mulan.conditioning.model_files import text_encoder_from_tensors
    from mulan_nodes.mulan.conversion.encoder_error import encoder_error

    def opened(form: str):
        return text_encoder_from_tensors(open_streaming(files[form]))

    errors: dict[str, list[float]] = {}
    with torch.inference_mode():
        for form in FORMS:
            bench.say(f"  error of {form}")
            errors[form] = [
                statistics.mean(encoder_error(opened(made), opened(source)).values())
                for made, source in ((form, "published"), (f"outliers_{form}", "outliers"))
            ]
    return errors


def profiles(bench: Bench, files: dict[str, Path], goals: Sequence[str]) -> dict:
    """For each of these goals, what both sides spend their time on."""
    found = {}
    for goal in goals:
        bench.say(f"  profile: {goal}")
        found[goal] = {}
        for side, name in report.COMPARED.items():
            way = LOADINGS[name] if goal == "load" else replace(LOADINGS[name], file="float32")
            with starting(bench, files, way) as worker:
                if goal == "load":
                    found[goal][side] = worker.ask("load", profile=True)
                    continue
                worker.ask("load")
                worker.ask("encode", case=goal)
                found[goal][side] = worker.ask("encode", case=goal, profile=True)
    return found


def machine() -> dict:
    """What figures depend on, and nothing that tells whose machine it is."""
    names = [line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.is_file() else []


# --- on a GPU


@contextmanager
def rest_of_card_taken(device: str, size: int | None) -> Iterator[int]:
    """Another process holds all of the card but `size` bytes, so that allocating more fails as on a smaller one; gives
    the bytes free.
    """
    with subprocess.Popen(
        [sys.executable, HERE / "ballast.py", device, str(size or 0)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as ballast:
        assert ballast.stdin and ballast.stdout
        answer = ballast.stdout.readline()
        if not answer:
            raise WorkerFailed(
                "the rest of the card could not be taken: another program uses it. Close it and try again."
            )
        try:
            yield int(answer)
        finally:
            ballast.stdin.close()


def measure_on_card(bench: Bench, file: Path, adapter: Path, device: str, dynamic: bool, free: int) -> dict:
    """One fresh process: load, the first prompt, the median of more, and twelve prompts; or the error that ended it."""
    arguments = ["--cpu"] if device == "cpu" else [] if dynamic else ["--disable-dynamic-vram"]
    try:
        with bench.ours(file, adapter, *arguments, free_before=free) as worker:
            card, load, first = worker.ask("card"), worker.ask("load"), worker.ask("encode_watched", case="one")
            again = [worker.ask("encode_watched", case="one") for _ in range(bench.repeat)]
            twelve = [worker.ask("encode_watched", case="twelve") for _ in range(bench.repeat)]
    except WorkerFailed as failure:
        return {"dynamic": dynamic, "error": str(failure).splitlines()[0]}
    runs = [first, *again, *twelve]
    if not all(run["finite"] for run in runs):
        return {**card, "error": "the contexts are not finite"}
    return {
        **card,
        "load": load["wall"],
        "first": first["wall"],
        "one": statistics.median(run["wall"] for run in again),
        "twelve": statistics.median(run["wall"] for run in twelve),
        "peak": max(run["peak"] for run in runs),
    }
