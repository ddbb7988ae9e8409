"""A side of the comparison as a process: reads one JSON order per line, answers one line each. Standard library and
torch only.

`Worker` is the end that gives orders, `serve` the end that takes them. Both sides measure with the same functions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

SMAPS = Path("/proc/self/smaps_rollup")
STATUS = Path("/proc/self/status")

Result = TypeVar("Result")


class WorkerFailed(RuntimeError):
    """A side ended or raised; the message holds the end of its log."""


class Worker:
    """`with Worker(name, command, log, environment) as worker: worker.ask("encode", case="one")`."""

    def __init__(self, name: str, command: list, log: Path, environment: dict[str, str]):
        self.name, self.log = name, log
        self._command, self._environment = [str(part) for part in command], environment

    def __enter__(self) -> Worker:
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._environment},
                encoding="utf-8",
            )
        assert self._process.stdin and self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout
        return self

    def __exit__(self, *_) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._to.close()
        self._from.close()

    def ask(self, order: str, **arguments) -> Any:
        """The answer to an order. Raises WorkerFailed."""
        try:
            self._to.write(json.dumps({"order": order, **arguments}) + "\n")
            self._to.flush()
            line = self._from.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            end = self.log.read_text("utf-8", "replace").splitlines()[-20:]
            raise WorkerFailed(
                "\n".join(
                    [
                        f"{self.name} could not {order}: {answer['error']}. The end of its log:",
                        *("    " + line for line in end),
                    ]
                )
            )
        return answer["answer"]


def take_stdout() -> TextIO:
    """The pipe for answers. What libraries print goes to stderr from here on: call it before importing them."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def serve(answers: TextIO, orders: dict[str, Callable]) -> None:
    """Obey orders from stdin until it closes."""
    for line in sys.stdin:
        order = json.loads(line)
        try:
            reply = {"answer": orders[order.pop("order")](**order)}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


def timed(work: Callable[[], Result]) -> tuple[dict[str, float], Result]:
    """({cpu, wall} in seconds, what `work` returns); cpu is of all threads."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}, result


def memory() -> dict[str, int]:
    """Bytes resident: anonymous (the process's own), file (mapped, shared with the system's file cache), and the peak
    of both.
    """
    if SMAPS.exists():
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in SMAPS.read_text().splitlines()[1:]}
        peak = next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return {"anonymous": fields["Anonymous"], "file": fields["Rss"] - fields["Anonymous"], "peak": peak}
    import psutil

    info = psutil.Process().memory_info()
    shared = getattr(info, "shared", 0)
    return {"anonymous": info.rss - shared, "file": shared, "peak": getattr(info, "peak_wset", info.rss)}


def profiled(work: Callable, rows: int = 6) -> list[dict]:
    """The operations that took most CPU time of their own: name, calls, seconds, share of the whole."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    events = sorted(profile.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    whole = sum(event.self_cpu_time_total for event in events) or 1
    return [
        {
            "operation": event.key,
            "calls": event.count,
            "seconds": event.self_cpu_time_total / 1e6,
            "share": event.self_cpu_time_total / whole,
        }
        for event in events[:rows]
    ]


def peak_bytes(work: Callable) -> int:
    """The most bytes that torch's allocator held at a time beyond those held before."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    results: Any = profile.profiler and profile.profiler.kineto_results
    changes = [event for event in results.events() if event.name() == "[memory]"]
    held = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most


class CallCounter:
    """Counts the calls of a module and the CPU time they take."""

    def __init__(self, module):
        self.calls, self.seconds = 0, 0.0
        self._handles = [module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave)]

    def _enter(self, *_):
        self._start = time.process_time()

    def _leave(self, *_):
        self.calls += 1
        self.seconds += time.process_time() - self._start

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class LeastFree:
    """`with LeastFree(read) as least:` keeps the lowest value that `read` gives while the block runs."""

    def __init__(self, read: Callable[[], int], every: float = 0.005):
        self._read, self._every, self._ended = read, every, threading.Event()
        self.value = read()

    def __enter__(self) -> LeastFree:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(self._every):
            self.value = min(self.value, self._read())

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()
        self.value = min(self.value, self._read())
