"""Which server gets which row next. Pure: no clock, no network, no files; `now` is a number of seconds.

Each server has at most `depth` rows: one that runs and, so that it never waits, one behind it. While there are plenty
of rows, a free place takes the next one. Near the end a place takes a row only if that row would then end no later
than on the other servers: a slow server does not begin what a fast one ends sooner, and rows that wait behind a slow
one are taken back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

ENCODE, SAMPLE = 0, 1  # lanes: conditioning files, images
LANES = (SAMPLE,)
REMEMBER = 0.4  # of a new time in the mean of a server's times
TOLERANCE = 0.1  # of a row's time: ends that are nearer to each other count as equal
FAILURES, REST = 3, 30.0  # rows that fail in succession until a server rests, and for how many seconds


@dataclass
class Server:
    """A server as the scheduler sees it."""

    lanes: tuple[int, ...] = LANES  # kinds of row it takes, preferred first
    rows: list[int] = field(default_factory=list)  # in the order they were given; the first one runs
    failures: int = 0  # in succession
    leaving: set[int] = field(default_factory=set)  # rows that are being taken back


class Scheduler:
    """Rows are numbers; whoever drives this knows what they are.

    lanes: kinds of row that each server takes, preferred first (default: all take SAMPLE).
    """

    def __init__(
        self,
        servers: int,
        depth: int = 2,
        attempts: int = 3,
        losses: int = 3,
        lanes: Sequence[tuple[int, ...]] | None = None,
    ):
        self.servers = [Server(lanes=LANES if lanes is None else lanes[index]) for index in range(servers)]
        self.depth, self.attempts, self.losses = depth, attempts, losses
        self._fresh: dict[int, deque[int]] = {ENCODE: deque(), SAMPLE: deque()}
        self._again: dict[int, list[int]] = {ENCODE: [], SAMPLE: []}
        self._lane: dict[int, int] = {}  # of rows that are not ended
        self._open = {ENCODE: 0, SAMPLE: 0}
        self._failed: dict[int, int] = {}  # attempts that failed
        self._lost: dict[int, int] = {}  # servers that stopped while it ran
        self._tried: dict[int, set[int]] = {}  # servers on which it failed
        self._added = False
        # Of each server, as arrays: there may be a thousand, and near the end all are compared after each row
        self._count = np.zeros(servers, int)  # rows it has
        self._since = np.zeros(servers)  # when the first of them began
        self._rests_until = np.zeros(servers)
        self._is_up = np.ones(servers, bool)
        self._seconds = {lane: np.full(servers, np.nan) for lane in self._fresh}  # a row takes, where one has ended
        self._takes = {lane: np.array([lane in of.lanes for of in self.servers], bool) for lane in self._fresh}

    # --- what comes in

    def add(self, row: int, lane: int = SAMPLE) -> None:
        """Let a row wait for a server."""
        self.expect(row, lane)
        self._fresh[lane].append(row)
        self._added = True

    def expect(self, row: int, lane: int = SAMPLE) -> None:
        """Count a row that will be added when others are done."""
        self._open[lane] += row not in self._lane
        self._lane[row] = lane

    def drop(self, row: int) -> None:
        """Forget a row that was expected."""
        self._open[self._lane.pop(row)] -= 1
        for known in (self._failed, self._lost, self._tried):
            known.pop(row, None)

    def adopt(self, row: int, server: int, now: float, lane: int = SAMPLE) -> None:
        """Count a row that a server may have from an earlier run as given to it."""
        self.expect(row, lane)
        self._give(row, server, now)

    def done(self, row: int, server: int, now: float, seconds: float) -> None:
        """Count a row as ended. seconds: it took on the server alone."""
        lane = self._lane[row]
        before = self._seconds[lane][server]
        mean = seconds if np.isnan(before) else before + REMEMBER * (seconds - before)
        self._seconds[lane][server] = max(mean, 1e-3)
        self.servers[server].failures = 0
        self._take(row, server, now)
        self.drop(row)

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
        """Count a row whose server stopped or forgot it; return whether the row is tried again.

        Only the row that ran counts the loss: it may be what stops servers.
        """
        if self.servers[server].rows[:1] == [row]:
            self._lost[row] = self._lost.get(row, 0) + 1
        self._take(row, server, now)
        return self._again_or_not(row, self._lost.get(row, 0) < self.losses)

    def down(self, server: int) -> None:
        """Give a server no rows until it is up; those it has are `lost` one by one."""
        self._is_up[server] = False

    def up(self, server: int, now: float) -> None:
        """Let a server take rows."""
        self._is_up[server], self._rests_until[server], self._since[server] = True, 0.0, now
        self.servers[server].failures = 0

    def taken_back(self, row: int, server: int, now: float) -> None:
        """Let a row that a server gave back wait again, before all others."""
        self._take(row, server, now)
        self._again[self._lane[row]].insert(0, row)

    def kept(self, row: int, server: int) -> None:
        """Note that a server could not give a row back."""
        self.servers[server].leaving.discard(row)

    # --- what goes out

    @property
    def open(self) -> int:
        """Rows that have not ended."""
        return len(self._lane)

    def waiting(self, lane: int = SAMPLE) -> int:
        """Rows of a lane that no server has."""
        return len(self._fresh[lane]) + len(self._again[lane])

    def give(self, now: float, servers: Iterable[int] | None = None) -> list[tuple[int, int]]:
        """Return (server, row) of rows that servers get now.

        servers: those with news; near the end all are looked at.
        """
        given: list[tuple[int, int]] = []
        able = self._able(now)
        places = self.depth * int(self._is_up.sum())
        near_end = {lane: self.waiting(lane) <= places and self._is_known(lane) for lane in self._fresh}
        orphaned = [lane for lane in self._fresh if self.waiting(lane) and not (able & self._takes[lane]).any()]
        everybody = servers is None or self._added
        self._added = False
        looked = range(len(self.servers)) if everybody else list(dict.fromkeys(servers or ()))
        for level in range(self.depth):
            for index in looked:
                of = self.servers[index]
                if len(of.rows) == level and able[index]:
                    lanes = (lane for lane in (*of.lanes, *orphaned) if self.waiting(lane) and not near_end[lane])
                    lane = next(lanes, None)
                    row = None if lane is None else self._next(lane, index, able)
                    if row is not None:
                        given.append((index, self._give(row, index, now)))
        for lane in self._fresh:
            if near_end[lane] and self.waiting(lane):
                given += self._give_last(lane, now, able)
        return given

    def take_back(self, now: float) -> list[tuple[int, int]]:
        """Return (server, row) of rows behind others that an idle server would end sooner."""
        idle = [int(index) for index in np.flatnonzero(self._able(now) & (self._count == 0))]
        idle = [index for index in idle if not any(self.waiting(lane) for lane in self.servers[index].lanes)]
        behind = np.flatnonzero(self._is_up & (self._count > 1)) if idle else ()
        found = []
        ends = [
            (self._end_of(int(index), place, now), int(index), row)
            for index in behind
            for place, row in enumerate(self.servers[index].rows)
            if place and row not in self.servers[index].leaving
        ]
        for (end, index, row), other in zip(sorted(ends, reverse=True), idle, strict=False):
            seconds = self._time(other, self._lane[row])
            if now + seconds < end - TOLERANCE * seconds and self._lane[row] in self.servers[other].lanes:
                self.servers[index].leaving.add(row)
                found.append((index, row))
        return found

    def seconds_left(self) -> float | None:
        """Return in how many seconds all would be done; None before a row is."""
        left = [0.0]
        for lane, rows in self._open.items():
            if not rows:
                continue
            if not self._is_known(lane):
                return None
            speed = (1 / self._times(lane))[self._is_up & self._takes[lane]].sum()
            if not speed:
                return None
            left.append(float(rows / speed))
        return max(left)

    # --- within

    def _able(self, now: float) -> np.ndarray:
        """Return which servers may be given rows."""
        return self._is_up & (self._rests_until <= now)

    def _takers(self, lane: int, able: np.ndarray) -> np.ndarray:
        """Return which of the able servers take a lane: any, where those that should are all away."""
        takers = able & self._takes[lane]
        return takers if takers.any() else able

    def _give(self, row: int, server: int, now: float) -> int:
        of = self.servers[server]
        if not of.rows:
            self._since[server] = now
        of.rows.append(row)
        self._count[server] += 1
        return row

    def _take(self, row: int, server: int, now: float) -> None:
        of = self.servers[server]
        if of.rows[0] == row:
            self._since[server] = now
        of.rows.remove(row)
        of.leaving.discard(row)
        self._count[server] -= 1

    def _again_or_not(self, row: int, again: bool) -> bool:
        if again:
            self._again[self._lane[row]].append(row)
            self._added = True
        else:
            self.drop(row)
        return again

    def _next(self, lane: int, server: int, able: np.ndarray) -> int | None:
        """Take the next row for a server: those that are tried again first, but not where they failed."""
        for place, row in enumerate(self._again[lane]):
            tried = self._tried.get(row, ())
            others = any(index not in tried for index in np.flatnonzero(self._takers(lane, able)))
            if server not in tried or not others:
                return self._again[lane].pop(place)
        return self._fresh[lane].popleft() if self._fresh[lane] else None

    def _is_known(self, lane: int) -> bool:
        return not np.isnan(self._seconds[lane]).all()

    def _times(self, lane: int) -> np.ndarray:
        """Return the seconds that a row of a lane takes on each server: the middle one's where it is not known."""
        seconds = self._seconds[lane]
        middle = np.nanmedian(seconds) if self._is_known(lane) else 1.0
        return np.where(np.isnan(seconds), middle, seconds)

    def _time(self, server: int, lane: int) -> float:
        return float(self._times(lane)[server])

    def _free_at(self, now: float, first: np.ndarray, behind: np.ndarray) -> np.ndarray:
        """Return when servers have ended a row of `first` seconds and what is behind it."""
        late = now - (self._since + first)
        rest = np.where(late < 0, -late, np.maximum(0.2 * first, late))  # what is late will hardly end at once
        return now + np.where(self._count > 0, rest + behind, 0.0)

    def _end_of(self, server: int, place: int, now: float) -> float:
        """Return when a server ends the row at a place of its own."""
        times = [self._time(server, self._lane[row]) for row in self.servers[server].rows[: place + 1]]
        first = np.full(len(self.servers), times[0])
        return float(self._free_at(now, first, np.full(len(self.servers), sum(times[1:])))[server])

    def _give_last(self, lane: int, now: float, able: np.ndarray) -> list[tuple[int, int]]:
        """Give the last rows of a lane so that all end soonest."""
        seconds = self._times(lane)
        able = self._takers(lane, able)
        if not able.any():
            return []
        free = self._free_at(now, seconds, seconds * np.maximum(self._count - 1, 0))
        end = _soonest_end(free[able], seconds[able], self.waiting(lane))
        places = able & (self._count < self.depth) & (free + seconds <= end + TOLERANCE * seconds)
        given = []
        for index in map(int, sorted(np.flatnonzero(places), key=lambda index: free[index] + seconds[index])):
            while (
                self._count[index] < self.depth
                and free[index] + seconds[index] <= end + TOLERANCE * seconds[index]
                and (row := self._next(lane, index, able)) is not None
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
