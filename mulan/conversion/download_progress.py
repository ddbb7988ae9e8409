"""How far a download is: bytes, speed, time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..boundary.read_ahead import LOOK
from ..boundary.values import format_size

SPEED_OVER = 10.0  # seconds of which the speed is the mean


@dataclass(frozen=True)
class DownloadProgress:
    """Bytes that came and that will, bytes per second, seconds left (None where unknown), and tensors written."""

    bytes: int
    all_bytes: int
    speed: float
    seconds_left: float | None
    tensors: int
    all_tensors: int

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", {_duration(self.seconds_left)} left"
        return f"{format_size(self.bytes)} of {format_size(self.all_bytes)}, {self.speed / 1e6:.1f} MB/s{left}"


class Meter:
    """Counts what came, and tells `progress` of it ten times a second."""

    def __init__(self, progress: Callable[[DownloadProgress], None], size: int, tensors: int):
        self._progress, self._size, self._all_tensors = progress, size, tensors
        self.tensors = self._bytes = 0
        self._last = 0.0
        self._recent = deque([(time.monotonic(), 0)])

    def again(self) -> None:
        self.tensors = 0

    def received(self, count: int) -> None:
        self._bytes += count
        self.look()

    def look(self) -> None:
        now = time.monotonic()
        if now - self._last < LOOK:
            return
        self._last = now
        self._recent.append((now, self._bytes))
        while now - self._recent[0][0] > SPEED_OVER:
            self._recent.popleft()
        then, before = self._recent[0]
        speed = (self._bytes - before) / max(now - then, LOOK)
        left = max(0, self._size - self._bytes) / speed if speed else None
        self._progress(DownloadProgress(self._bytes, self._size, speed, left, self.tensors, self._all_tensors))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
