"""What a person sees of a run: rows, images per minute of each server, the time that is left."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TextIO

from .driver import Watcher
from .scheduler import Scheduler
from .worker import Outcome

EVERY = 10.0  # seconds between two reports where nobody watches a terminal
WINDOW = 300.0  # seconds that a speed is the mean of
SHOWN = 8  # servers with a line of their own


class Progress(Watcher):
    """Prints to a terminal what is under way, elsewhere a line from time to time."""

    def __init__(
        self,
        names: Sequence[str],
        rows: int,
        done_before: int,
        scheduler: Scheduler,
        out: TextIO = sys.stdout,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._names, self._rows, self._scheduler, self._out, self._clock = names, rows, scheduler, out, clock
        self.ended, self.broken = done_before, 0
        self._times: dict[int, deque[tuple[float, int]]] = {index: deque() for index in range(len(names))}
        self._start = self._last = clock()
        self._away: set[int] = set()

    def done(self, server: int, task: int, outcome: Outcome) -> None:
        self.ended += 1
        self._times[server].append((self._clock(), len(outcome.files)))
        self.tick()

    def failed(self, server: int, task: int, outcome: Outcome, again: bool) -> None:
        if not again:
            self.ended += 1
            self.broken += 1
            where = f" on {self._names[server]}" if server >= 0 else ""  # else no server had it
            self._say(f"a row failed{where}: {outcome.message[:300]}")

    def away(self, server: int, message: str) -> None:
        if server in self._away:  # two drivers may tell of it
            return
        self._away.add(server)
        self._say(f"{self._names[server]} is away: {message[:300]}")

    def back(self, server: int) -> None:
        if server in self._away:
            self._away.discard(server)
            self._say(f"{self._names[server]} is back")

    def tick(self) -> None:
        now = self._clock()
        if now - self._last < (1.0 if self._out.isatty() else EVERY):
            return
        self._last = now
        if self._out.isatty():
            print(f"\r\x1b[K{self.line()}", end="", file=self._out, flush=True)
        else:
            print(self.line(), file=self._out, flush=True)

    def line(self) -> str:
        """Return the state in a line."""
        left = self._scheduler.seconds_left()
        speeds = [self.speed(index) for index in range(len(self._names))]
        parts = [f"{self.ended} of {self._rows} rows", f"{sum(speeds):.1f} images/min"]
        if 1 < len(speeds) <= SHOWN:
            parts[-1] += (
                " ("
                + ", ".join("away" if index in self._away else f"{speed:.1f}" for index, speed in enumerate(speeds))
                + ")"
            )
        if self.broken:
            parts.append(f"{self.broken} failed")
        if left is not None:
            parts.append(f"{_duration(left)} left")
        return ", ".join(parts)

    def speed(self, server: int) -> float:
        """Return a server's images per minute, over the last five minutes."""
        now, times = self._clock(), self._times[server]
        while times and times[0][0] < now - WINDOW:
            times.popleft()
        span = min(now - self._start, WINDOW)
        return 60 * sum(count for _, count in times) / span if span > 0 else 0.0

    def end(self) -> None:
        """Leave the line as it is."""
        if self._out.isatty():
            print(file=self._out)

    def _say(self, text: str) -> None:
        start = "\r\x1b[K" if self._out.isatty() else ""
        print(f"{start}{text}", file=self._out, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
