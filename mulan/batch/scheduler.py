"""Which server gets which row next. Pure: no clock, no network, no files; `now` is a number of seconds.

Each server has at most `depth` rows: one that runs and, so that it never waits, one behind it. While there are plenty
of rows, a free place takes the next one. Near the end a place takes a row only if that row would then end no later
than on the other servers: a slow server does not begin what a fast one ends sooner, and rows that wait behind a slow
one are taken back. When none is left, a server that has nothing to do gets a row, too, that another one is late with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

REMEMBER = 0.4  # of a new time in the mean of a server's times
TOLERANCE = 0.1  # of a row's time: ends that are nearer to each other count as equal
FAILURES, REST = 3, 30.0  # rows that fail in succession until a server rests, and for how many seconds


@dataclass
class Server:
    """A server as the scheduler sees it."""

    rows: list[int] = field(default_factory=list)  # in the order they were given; the first one runs
    failures: int = 0  # in succession
    leaving: set[int] = field(default_factory=set)  # rows that are being taken back
    stopped: int | None = None  # the row that ran when it went down, until this one is counted


class Scheduler:
    """Rows are numbers; whoever drives this knows what they are."""

    def __init__(self, servers: int, depth: int = 2, attempts: int = 3, losses: int = 3):
        self.servers = [Server() for _ in range(servers)]
        self.depth, self.attempts, self.losses = depth, attempts, losses
        self._fresh: deque[int] = deque()
        self._again: list[int] = []
        self._open: set[int] = set()  # rows that have not ended
        self._failed: dict[int, int] = {}  # attempts that failed
        self._lost: dict[int, int] = {}  # servers that stopped while it ran
        self._tried: dict[int, set[int]] = {}  # servers on which it failed
        self._added = False
        # Of each server, as arrays: there may be a thousand, and near the end all are compared after each row
        self._count = np.zeros(servers, int)  # rows it has
        self._since = np.zeros(servers)  # when the first of them began
        self._rests_until = np.zeros(servers)
        self._is_up = np.ones(servers, bool)
        self._takes = np.ones(servers, bool)
        self._held: dict[int, int] = {}  # row -> servers that have it
        self._seconds = np.full(servers, np.nan)  # a row takes, where one has ended

    # --- what comes in

    def add(self, row: int) -> None:
        """Let a row wait for a server."""
        self._open.add(row)
        self._fresh.append(row)
        self._added = True

    def expect(self, row: int) -> None:
        """Count a row that is added, or dropped, later."""
        self._open.add(row)

    def drop(self, row: int) -> None:
        """Forget a row that was expected."""
        self._open.discard(row)

    def adopt(self, row: int, server: int, now: float) -> None:
        """Count a row that a server may have from an earlier run as given to it."""
        self._open.add(row)
        self._give(row, server, now)

    def done(self, row: int, server: int, now: float, seconds: float) -> None:
        """Count a row as ended. seconds: it took on the server alone."""
        before = self._seconds[server]
        mean = seconds if np.isnan(before) else before + REMEMBER * (seconds - before)
        self._seconds[server] = max(mean, 1e-3)
        self.servers[server].failures = 0
        self._take(row, server, now)
        self._end(row)

    def failed(self, row: int, server: int, now: float) -> bool:
        """Count a failed attempt; return whether the row is tried again."""
        self._take(row, server, now)
        of = self.servers[server]
        of.failures += 1
        if of.failures >= FAILURES and np.delete(self._able(now), server).any():
            self._rests_until[server], of.failures = now + REST, 0
        self._failed[row] = self._failed.get(row, 0) + 1
        self._tried.setdefault(row, set()).add(server)
        return self._again_or_not(row, self._failed[row] < self.attempts)

    def lost(self, row: int, server: int, now: float) -> bool:
        """Count a row whose server stopped or forgot it, and is `down`; return whether the row is tried again.

        Only the row that ran counts the loss: it may be what stops servers.
        """
        if self.servers[server].stopped == row:
            self.servers[server].stopped = None
            self._lost[row] = self._lost.get(row, 0) + 1
        self._take(row, server, now)
        return self._again_or_not(row, self._lost.get(row, 0) < self.losses)

    def down(self, server: int) -> None:
        """Give a server no rows until it is up; those it has are `lost` one by one."""
        self._is_up[server] = False
        self.servers[server].stopped = next(iter(self.servers[server].rows), None)

    def up(self, server: int, now: float) -> None:
        """Let a server take rows."""
        self._is_up[server], self._rests_until[server], self._since[server] = True, 0.0, now
        self.servers[server].failures = 0

    def let_take(self, server: int, takes: bool) -> None:
        """Let a server take rows or none; those that it has are ended by it."""
        self._takes[server] = takes
        self._added = True

    def taken_back(self, row: int, server: int, now: float) -> None:
        """Let a row that a server gave back wait again, before all others."""
        self._take(row, server, now)
        if row in self._open and row not in self._held:
            self._again.insert(0, row)

    def kept(self, row: int, server: int) -> None:
        """Note that a server could not give a row back."""
        self.servers[server].leaving.discard(row)

    # --- what goes out

    @property
    def open(self) -> int:
        """Rows that have not ended."""
        return len(self._open)

    @property
    def takers(self) -> set[int]:
        """Servers that take rows when they are up."""
        return set(map(int, np.flatnonzero(self._takes)))

    @property
    def waiting(self) -> int:
        """Rows that no server has."""
        return len(self._fresh) + len(self._again)

    def give(self, now: float, servers: Iterable[int] | None = None) -> list[tuple[int, int]]:
        """Return (server, row) of rows that servers get now.

        servers: those with news; near the end all are looked at.
        """
        given: list[tuple[int, int]] = []
        able = self._able(now)
        places = self.depth * int((self._is_up & self._takes).sum())
        everybody = servers is None or self._added
        self._added = False
        if self.waiting <= places and self._is_known():
            return self._give_last(now, able) if self.waiting else []
        looked = range(len(self.servers)) if everybody else list(dict.fromkeys(servers or ()))
        for level in range(self.depth):
            for index in looked:
                if len(self.servers[index].rows) == level and able[index]:
                    row = self._next(index, able)
                    if row is not None:
                        given.append((index, self._give(row, index, now)))
        return given

    def take_back(self, now: float) -> list[tuple[int, int]]:
        """Return (server, row) of rows behind others that an idle server would end sooner."""
        idle = [] if self.waiting else list(map(int, np.flatnonzero(self._able(now) & (self._count == 0))))
        behind = np.flatnonzero(self._is_up & (self._count > 1)) if idle else ()
        found = []
        ends = [
            (float(self._ends(now, np.full(len(self.servers), place + 1))[index]), int(index), row)
            for index in behind
            for place, row in enumerate(self.servers[index].rows)
            if place and row not in self.servers[index].leaving
        ]
        for (end, index, row), other in zip(sorted(ends, reverse=True), idle, strict=False):
            seconds = float(self._times()[other])
            if now + seconds < end - TOLERANCE * seconds:
                self.servers[index].leaving.add(row)
                found.append((index, row))
        return found

    def double(self, now: float) -> list[tuple[int, int]]:
        """Return (server, row) of rows that run elsewhere and that an idle server should end sooner.

        They are given to it, too, and only where no other row is left: the first result counts.
        """
        if self.waiting or len(self._held) < len(self._open):
            return []
        idle = list(map(int, np.flatnonzero(self._able(now) & (self._count == 0))))
        if not idle:
            return []
        ends, seconds = self._ends(now, np.ones(len(self.servers))), self._times()
        runs = [
            (float(ends[index]), row)
            for index in map(int, np.flatnonzero(self._count > 0))
            if (row := self.servers[index].rows[0]) in self._open and self._held[row] == 1
        ]
        given = []
        for (end, row), index in zip(sorted(runs, reverse=True), idle, strict=False):
            if now + seconds[index] < end - TOLERANCE * seconds[index] and index not in self._tried.get(row, ()):
                given.append((index, self._give(row, index, now)))
        return given

    def seconds_left(self) -> float | None:
        """Return in how many seconds all would be done; None before a row is."""
        if not self._open:
            return 0.0
        if not self._is_known():
            return None
        speed = (1 / self._times())[self._is_up & self._takes].sum()
        return float(len(self._open) / speed) if speed else None

    # --- within

    def _able(self, now: float) -> np.ndarray:
        """Return which servers may be given rows."""
        return self._is_up & self._takes & (self._rests_until <= now)

    def _give(self, row: int, server: int, now: float) -> int:
        of = self.servers[server]
        if not of.rows:
            self._since[server] = now
        of.rows.append(row)
        self._held[row] = self._held.get(row, 0) + 1
        self._count[server] += 1
        return row

    def _take(self, row: int, server: int, now: float) -> None:
        of = self.servers[server]
        if of.rows[0] == row:
            self._since[server] = now
        of.rows.remove(row)
        self._held[row] -= 1
        if not self._held[row]:
            del self._held[row]
        of.leaving.discard(row)
        self._count[server] -= 1

    def _again_or_not(self, row: int, again: bool) -> bool:
        if row in self._held:  # by another server
            return True
        if again:
            self._again.append(row)
            self._added = True
        else:
            self._end(row)
        return again

    def _end(self, row: int) -> None:
        self._open.discard(row)
        for known in (self._failed, self._lost, self._tried):
            known.pop(row, None)

    def _next(self, server: int, able: np.ndarray) -> int | None:
        """Take the next row for a server: those that are tried again first, but not where they failed."""
        for place, row in enumerate(self._again):
            tried = self._tried.get(row, ())
            others = any(index not in tried for index in np.flatnonzero(able))
            if server not in tried or not others:
                return self._again.pop(place)
        return self._fresh.popleft() if self._fresh else None

    def _is_known(self) -> bool:
        return not np.isnan(self._seconds).all()

    def _times(self) -> np.ndarray:
        """Return the seconds that a row takes on each server: the middle one's where it is not known."""
        middle = np.nanmedian(self._seconds) if self._is_known() else 1.0
        return np.where(np.isnan(self._seconds), middle, self._seconds)

    def _ends(self, now: float, rows: np.ndarray) -> np.ndarray:
        """Return when servers have ended so many of their rows, the one that runs included."""
        seconds = self._times()
        late = now - (self._since + seconds)
        rest = np.where(late < 0, -late, np.maximum(0.2 * seconds, late))  # what is late will hardly end at once
        return now + np.where(rows > 0, rest + seconds * (rows - 1), 0.0)

    def _give_last(self, now: float, able: np.ndarray) -> list[tuple[int, int]]:
        """Give the last rows so that all end soonest."""
        if not able.any():
            return []
        seconds, free = self._times(), self._ends(now, self._count)
        end = _soonest_end(free[able], seconds[able], self.waiting)
        places = able & (self._count < self.depth) & (free + seconds <= end + TOLERANCE * seconds)
        given = []
        for index in map(int, sorted(np.flatnonzero(places), key=lambda index: free[index] + seconds[index])):
            while (
                self._count[index] < self.depth
                and free[index] + seconds[index] <= end + TOLERANCE * seconds[index]
                and (row := self._next(index, able)) is not None
            ):
                given.append((index, self._give(row, index, now)))
                free[index] += seconds[index]
        return given


def _soonest_end(free: np.ndarray, seconds: np.ndarray, rows: int) -> float:
    """Return the time by which servers, free at `free`, can have ended so many rows of `seconds` each."""
    low, high = float(free.min()), float((free + seconds).min() + seconds.min() * rows)
    for _ in range(30):
        middle = (low + high) / 2
        if np.floor(np.maximum(middle - free, 0) / seconds + 1e-9).sum() >= rows:
            high = middle
        else:
            low = middle
    return high
