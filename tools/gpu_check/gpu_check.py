"""The GPU check's sections, each in a process of its own, and a short table of their results. See README.md."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

# Name -> seconds at most, most important first; what does not fit into the time left is skipped.
SECTIONS = {
    "machine": 40,
    "parity": 110,
    "sd15": 60,
    "graphs": 150,
    "visionllm": 110,
    "mulan": 70,
    "internvl": 50,
    "chat": 70,
    "kernels": 40,
    "card": 170,
}
IN_OTHER_PROCESSES = ("graphs", "card")  # theirs need the device to themselves
QUICK_PATIENCE = 8  # a quick run is on a slow CPU: so many times the limit


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__)
    for name in ("comfyui", "out", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=530)
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, help="these sections only")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)  # what a child process runs
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.section:
        return run_section(options)
    start, done = time.monotonic(), {"quick": options.quick}
    for name, limit in SECTIONS.items():
        if options.only and name not in options.only:
            continue
        left = options.seconds - (time.monotonic() - start)
        if left < min(limit, 45):
            done[name] = {"skipped": f"{left:.0f} s left"}
            print(f"--- {name}: skipped, {left:.0f} s left", flush=True)
            continue
        done[name] = run_child(options, name, min(left, (QUICK_PATIENCE if options.quick else 2) * limit))
        write(options.out, done)
    errors = [
        f"{name}: {row.get('name')}: {row['error'][:120]}"
        for name, result in done.items()
        if isinstance(result, dict)
        for row in result.get("rows", [])
        if "error" in row
    ]
    print(f"\n{len(errors)} errors", *errors, sep="\n  ")
    write(options.out, done)
    print(f"\nThe tables: {options.out / 'gpu.md'}\nEvery figure: {options.out / 'gpu.json'}")
    failed = any(result.get("rc") not in (0, None) for result in done.values() if isinstance(result, dict))
    return 1 if errors or failed else 0


def write(folder: Path, results: dict) -> None:
    from mulan_nodes.tools.gpu_check.report import markdown

    (folder / "gpu.json").write_text(json.dumps(results, indent=1), "utf-8")
    (folder / "gpu.md").write_text(markdown(results), "utf-8")


def run_child(options: argparse.Namespace, name: str, limit: float) -> dict:
    """Run one section in a process of its own, and print its rows."""
    rows_file, log_file = options.out / f"gpu_{name}.json", options.out / "gpu.log"
    rows_file.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--section", name, "--device", options.device]
    for folder in ("comfyui", "out", "work"):
        command += [f"--{folder}", str(getattr(options, folder))]
    if options.quick:
        command.append("--quick")
    start = time.monotonic()
    with open(log_file, "ab") as log:
        log.write(f"\n=== {name}\n".encode())
        log.flush()
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            code: int | str = child.wait(limit)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            code = "time"
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()] if rows_file.is_file() else []
    rows_file.unlink(missing_ok=True)
    seconds = round(time.monotonic() - start, 1)
    print(f"--- {name}: rc {code}, {seconds} s", flush=True)
    for row in rows:
        print("   ", json.dumps(row, ensure_ascii=False)[:230], flush=True)
    if code != 0:
        print("    the log's end:", *log_file.read_text("utf-8", "replace").splitlines()[-6:], sep="\n      ")
    return {"rc": code, "seconds": seconds, "rows": rows}


def run_section(options: argparse.Namespace) -> int:
    from mulan_nodes.tools.comfyui import open_comfyui

    on_cpu = options.device == "cpu" or options.section in IN_OTHER_PROCESSES
    open_comfyui(*(["--cpu"] if on_cpu else []))
    import torch

    from mulan_nodes.tools.gpu_check import (
        card_memory,
        comfy_graphs,
        internvl_speed,
        machine,
        mulan_speed,
        parity,
        sd15_memory,
        visionllm_speed,
    )
    from mulan_nodes.tools.gpu_check.measuring import Section

    if options.device == "cpu":
        torch.set_num_threads(2)
    functions = {
        "machine": machine.machine,
        "parity": parity.parity,
        "sd15": sd15_memory.sd15,
        "graphs": comfy_graphs.graphs,
        "visionllm": visionllm_speed.visionllm,
        "mulan": mulan_speed.mulan,
        "internvl": internvl_speed.internvl,
        "chat": internvl_speed.chat,
        "kernels": machine.kernels,
        "card": card_memory.card,
    }
    functions[options.section](Section(options))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
