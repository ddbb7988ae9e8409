"""A section's rows, and how time and memory of a device are measured."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

GIB = 2**30


class Section:
    """What a section is given, and the file that its rows go to."""

    def __init__(self, options: argparse.Namespace):
        self.comfyui: Path = options.comfyui
        self.out: Path = options.out
        self.work: Path = options.work
        self.quick: bool = options.quick
        self.on_cpu: bool = options.device == "cpu"
        self.device = torch.device("cpu" if self.on_cpu else "cuda:0")
        self._rows = options.out / f"gpu_{options.section}.json"

    def row(self, **values: Any) -> None:
        """Write one row of the table."""
        rounded = {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}
        with open(self._rows, "a") as file:
            file.write(json.dumps(rounded, ensure_ascii=False) + "\n")

    def case(self, name: str, work: Callable[[], Any]) -> bool:
        """Run `work`; its dict, or its error, becomes a row. False where it failed."""
        try:
            result = work()
        except Exception as error:
            traceback.print_exc()
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
            self.row(name=name, error=f"{type(error).__name__}: {str(error)[:300]}", at=where)
            return False
        values = result if isinstance(result, dict) else {}
        self.row(**{"name": name, **{"card" if key == "name" else key: value for key, value in values.items()}})
        return True

    def held(self) -> float:
        """GiB that torch holds on the device."""
        return 0.0 if self.on_cpu else torch.cuda.memory_allocated() / GIB


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def seconds(work: Callable[[], Any], repeat: int = 3, warm_up: int = 1) -> float:
    """The median of `repeat` runs."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeat):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak(work: Callable[[], Any]) -> tuple[float, Any]:
    """GiB of the device at the most, beyond those held before, and the result."""
    if not torch.cuda.is_available():
        return 0.0, work()
    release()
    synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = work()
    synchronize()
    return (torch.cuda.max_memory_allocated() - before) / GIB, result


def measured(work: Callable[[], Any], repeat: int = 3, warm_up: int = 1) -> dict[str, float]:
    """Peak of the first run and seconds of more."""
    most, _ = peak(work)
    return {"s": seconds(work, repeat, warm_up), "peak_GiB": most}


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    ours, expected = ours.float().cpu(), expected.float().cpu()
    return ((ours - expected).norm() / expected.norm()).item()
