"""A campaign: cases of a seed, one after another, and what became of them."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..comfy_server import MODEL_FOLDERS, ROOT, ComfyServer
from . import report
from .cases import KINDS, Case
from .judging import FAULTS
from .replay import saved_cases
from .running import Result, Runner


def run(comfyui: Path, options: argparse.Namespace, out: Path) -> int:
    with tempfile.TemporaryDirectory(prefix="fuzz_models_") as folder:
        models = Path(folder)
        for name in MODEL_FOLDERS:
            (models / name).mkdir()

        def start() -> ComfyServer:
            server = ComfyServer(comfyui, extra_models=models, extra_nodes=ROOT / "tests" / "custom_nodes")
            server.start()
            return server

        runner = Runner(start, models)
        try:
            return _run(runner, options, out)
        finally:
            runner.close()


def _run(runner: Runner, options: argparse.Namespace, out: Path) -> int:
    cases = runner.cases()
    chosen: Sequence[str | Case]
    if options.replay:
        chosen = saved_cases(options.replay, cases)
    elif options.ids or options.ids_file:
        chosen = options.ids or [line for line in options.ids_file.read_text("utf-8").splitlines() if line]
    else:
        kinds = tuple(options.kinds or KINDS)
        if options.nodes:
            cases.info = {name: told for name, told in cases.info.items() if name in options.nodes}
        chosen = cases.drawn(options.seed, options.cases, kinds)
    results: list[Result] = []
    begun = told_at = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    title = f"{len(chosen)} cases, seed {options.seed}"
    with open(out / "log.jsonl", "w", encoding="utf-8") as log:
        for each in chosen:
            case = each if isinstance(each, Case) else cases.make(each)
            result = runner.run_one(case)
            results.append(result)
            log.write(json.dumps(result.record()) + "\n")
            log.flush()
            if result.verdict.result in FAULTS:
                report.write_graph(out / "graphs", case, result)
            if time.monotonic() - told_at > 30:
                told_at = time.monotonic()
                faults = sum(result.verdict.result in FAULTS for result in results)
                print(f"{len(results)} of {len(chosen)}, {faults} faults, {told_at - begun:.0f} s", flush=True)
                report.write(out, results, title)
    report.write(out, results, title)
    print(report.text(results, title).encode("utf-8", "backslashreplace").decode(), flush=True)
    print(f"{out / 'fuzz.md'}, {time.monotonic() - begun:.0f} s")
    return int(any(result.verdict.result in FAULTS for result in results))
