"""Run the tests, on several cores at once; further arguments go to pytest, and -n 0 runs one test after the other."""

import argparse
import os
from pathlib import Path

FORWARDS = True
NEEDS_TINY_MODELS = True
MEMORY = 5e9  # of a process of tests and its ComfyUI servers
MOST = 4  # processes: each makes its own models and starts its own server


def run(comfyui: Path, options: argparse.Namespace) -> int:
    import pytest

    from ..comfyui import ROOT

    tests = ROOT / "tests"
    given = (Path(argument.split("::")[0]).resolve() for argument in options.rest)
    if any(path.exists() and path.is_relative_to(tests) for path in given):
        everything = []
    else:
        everything = [*_side_by_side(), str(tests)]
    return pytest.main([f"--config-file={tests / 'pytest.ini'}", f"--rootdir={tests}", *everything, *options.rest])


def _side_by_side() -> list[str]:
    """pytest-xdist's arguments: whole files go to as many processes as cores and memory allow."""
    import psutil

    cores = os.cpu_count() or 1
    processes = max(1, min(cores, MOST, int(psutil.virtual_memory().available / MEMORY)))
    if processes == 1:
        return []
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // processes))  # torch's threads, also of the servers
    return ["-n", str(processes), "--dist", "loadfile"]
