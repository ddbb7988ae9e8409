"""The run: gives rows to servers, writes down what became of them, waits for servers that are away, stops clean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from ..boundary.files import UnwritableError
from . import worker
from .journal import DONE, FAILURE, Journal
from .scheduler import Scheduler
from .work import Work, failure, success
from .worker import Job, Outcome

TICK = 1.0  # seconds after which it looks around without news
FIRST_LOOK, LAST_LOOK = 0.5, 30.0  # seconds between two looks for a server that is away
STOP_WITHIN = 20.0  # seconds for what is under way to end when the run stops


class Fleet(Protocol):
    """What reaches the servers, each by its number."""

    async def run(self, server: int, job: Job) -> Outcome:
        """Run a job to its end. It never raises: a worker that dies is an outcome."""
        ...

    async def take_back(self, server: int, prompt_id: str) -> bool:
        """Take a job back that waits on a server; its `run` then ends as STOPPED."""
        ...

    async def is_up(self, server: int) -> bool:
        """Return whether a server can take jobs; start its worker anew if that died."""
        ...

    async def stop(self, server: int) -> None:
        """Interrupt the jobs on a server."""
        ...


class Watcher:
    """What is told about a run; all of it does nothing here."""

    def done(self, server: int, task: int, outcome: Outcome) -> None:
        """Hear that a task is done."""

    def failed(self, server: int, task: int, outcome: Outcome, again: bool) -> None:
        """Hear that an attempt failed."""

    def away(self, server: int, message: str) -> None:
        """Hear that a server does not answer."""

    def back(self, server: int) -> None:
        """Hear that a server answers again."""

    def tick(self) -> None:
        """Hear that time has passed."""


class Driver:
    """Runs the tasks that the journal does not have. `run` returns "" when all ended, else why it stopped.

    names: of the servers, as the journal calls them. give_up: seconds without any server until the run stops.
    waiting: tasks that begin only when `release` names them.
    """

    def __init__(
        self,
        work: Work,
        fleet: Fleet,
        journal: Journal,
        scheduler: Scheduler,
        names: Sequence[str],
        watcher: Watcher,
        give_up: float = 600.0,
        fold: Callable[[], None] = lambda: None,
        waiting: Container[int] = (),
    ):
        self._work, self._fleet, self._journal, self._scheduler = work, fleet, journal, scheduler
        self._names, self._watcher, self._give_up, self._fold = names, watcher, give_up, fold
        self._waiting, self._numbers = waiting, {name: index for index, name in enumerate(names)}
        self._attempts: dict[int, int] = {}  # of tasks that failed
        self._news: asyncio.Queue[tuple[int, int, Outcome]] = asyncio.Queue()
        self._running: dict[tuple[int, int], asyncio.Task] = {}
        self._others: set[asyncio.Task] = set()
        self._watched: set[int] = set()  # servers that are away
        self._leaving: set[tuple[int, int]] = set()
        self._reason = ""

    def stop(self, reason: str) -> None:
        """Let the run end soon; what is under way is interrupted."""
        self._reason = self._reason or reason
        self._wake()

    def release(self, task: int) -> None:
        """Let a task begin that waited."""
        self._enter(task)
        self._wake()

    def refuse(self, task: int, message: str) -> None:
        """Count a task that waited as failed."""
        self._journal.add(FAILURE, failure(self._work.record(task), Outcome(worker.FAILED, message), "", 0))
        self._scheduler.drop(task)
        self._watcher.failed(-1, task, Outcome(worker.FAILED, message), False)
        self._wake()

    def let_take(self, server: int, takes: bool) -> None:
        """Let a server take tasks, or no more of them."""
        self._scheduler.let_take(server, takes)
        self._wake()

    async def run(self, down: Sequence[int] = ()) -> str:
        """Run. Raises nothing that the disk or a server does: these are reasons.

        down: servers that do not answer yet.
        """
        try:
            for server in down:
                self._away(server, "it does not answer")
            self._begin()
            looked: list[int] | None = None
            while self._scheduler.open and not self._reason:
                self._send(looked)
                looked = await self._hear()
                self._watcher.tick()
        except UnwritableError as error:
            self._reason = self._reason or str(error)
        await self._end()
        return self._reason

    # --- within

    def _clock(self) -> float:
        return asyncio.get_running_loop().time()

    def _begin(self) -> None:
        """Fill the scheduler: rows that servers may have go back to these, all others wait."""
        self._last_life = self._clock()
        for task in range(len(self._work)):
            key = self._work.key(task)
            if key in self._journal.done or key in self._journal.failed:
                continue
            if task in self._waiting:
                self._scheduler.expect(task)
            else:
                self._enter(task)

    def _enter(self, task: int) -> None:
        server, attempt = self._journal.sent.get(self._work.key(task), ("", 0))
        if server in self._numbers:
            self._attempts[task] = attempt
            self._scheduler.adopt(task, self._numbers[server], self._clock())
            self._start(self._numbers[server], task)
        else:
            self._scheduler.add(task)

    def _wake(self) -> None:
        self._news.put_nowait((-1, -1, Outcome(worker.STOPPED)))

    def _send(self, looked: list[int] | None) -> None:
        now = self._clock()
        for server, task in self._scheduler.give(now, looked):
            self._journal.note_sent(self._work.key(task), self._names[server], self._attempts.get(task, 0))
            self._start(server, task)
        for server, task in self._scheduler.take_back(now):
            self._leaving.add((server, task))
            self._beside(self._take_back(server, task))
        for server, task in self._scheduler.double(now):
            self._start(server, task, f"~{server}")

    def _start(self, server: int, task: int, mark: str = "") -> None:
        running = asyncio.ensure_future(self._one(server, task, mark))
        self._running[server, task] = running

    async def _one(self, server: int, task: int, mark: str) -> None:
        """Run a task. mark: at the end of its files' names, where two servers run it."""
        job = self._work.job(task, self._attempts.get(task, 0))
        outcome = await self._fleet.run(server, replace(job, stem=f"{job.stem}{mark}"))
        self._news.put_nowait((server, task, outcome))

    def _beside(self, coroutine) -> None:
        task = asyncio.ensure_future(coroutine)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _take_back(self, server: int, task: int) -> None:
        job = self._work.job(task, self._attempts.get(task, 0))
        if not await self._fleet.take_back(server, job.prompt_id):
            self._leaving.discard((server, task))
            if (server, task) in self._running:
                self._scheduler.kept(task, server)

    async def _hear(self) -> list[int] | None:
        """Wait for news and deal with all there is; return the servers that they are about, None after a tick."""
        try:
            heard = [await asyncio.wait_for(self._news.get(), TICK)]
        except asyncio.TimeoutError:
            if self._clock() - self._last_life > self._give_up and self._watched >= self._scheduler.takers:
                self._reason = f"no server has answered for {self._give_up:.0f} s"
            return None
        while not self._news.empty():
            heard.append(self._news.get_nowait())
        for server, task, outcome in heard:
            if task >= 0:
                self._deal_with(server, task, outcome)
        self._journal.sync()
        if self._journal.is_long:
            self._fold()
        return [server for server, _, _ in heard if server >= 0]

    def _deal_with(self, server: int, task: int, outcome: Outcome) -> None:
        now = self._clock()
        del self._running[server, task]
        taken_back = (server, task) in self._leaving
        self._leaving.discard((server, task))
        if self._work.key(task) in self._journal.done:  # another server was sooner
            self._scheduler.taken_back(task, server, now)
            for file in outcome.files:
                with suppress(OSError):
                    (self._journal.folder / file["name"]).unlink()
            if outcome.kind == worker.LOST:
                self._away(server, outcome.message)
        elif outcome.kind == worker.DONE:
            tries = self._attempts.pop(task, 0) + 1
            self._journal.add(DONE, success(self._work.record(task), outcome, self._names[server], tries))
            self._scheduler.done(task, server, now, outcome.seconds)
            self._last_life = now
            self._watcher.done(server, task, outcome)
        elif outcome.kind == worker.LOST:
            self._away(server, outcome.message)
            self._again(server, task, outcome, self._scheduler.lost(task, server, now))
        elif outcome.kind == worker.UNWRITABLE:
            self._reason = self._reason or outcome.message
            self._scheduler.taken_back(task, server, now)
        elif outcome.kind == worker.STOPPED and (taken_back or self._reason):
            self._scheduler.taken_back(task, server, now)
        else:
            again = self._scheduler.failed(task, server, now)
            self._attempts[task] = self._attempts.get(task, 0) + 1
            self._again(server, task, outcome, again)

    def _again(self, server: int, task: int, outcome: Outcome, again: bool) -> None:
        self._watcher.failed(server, task, outcome, again)
        if again:
            return
        attempts = self._attempts.pop(task, 0) or 1
        self._journal.add(FAILURE, failure(self._work.record(task), outcome, self._names[server], attempts))

    def _away(self, server: int, message: str) -> None:
        if server in self._watched:
            return
        self._watched.add(server)
        self._scheduler.down(server)
        self._watcher.away(server, message)
        self._beside(self._until_back(server))

    async def _until_back(self, server: int) -> None:
        pause = FIRST_LOOK
        while not self._reason:
            await asyncio.sleep(pause)
            if await self._fleet.is_up(server):
                self._watched.discard(server)
                self._last_life = self._clock()
                self._scheduler.up(server, self._last_life)
                self._watcher.back(server)
                self._news.put_nowait((server, -1, Outcome(worker.STOPPED)))
                return
            pause = min(2 * pause, LAST_LOOK)

    async def _end(self) -> None:
        """Interrupt what is under way, and take in what has ended meanwhile."""
        for task in list(self._others):
            task.cancel()
        if self._running:
            stops = [self._fleet.stop(server) for server in {server for server, _ in self._running}]
            await asyncio.wait([asyncio.ensure_future(stop) for stop in stops], timeout=STOP_WITHIN)
            await asyncio.wait(list(self._running.values()), timeout=STOP_WITHIN)
        while not self._news.empty():
            server, task, outcome = self._news.get_nowait()
            if task >= 0 and outcome.kind == worker.DONE:
                try:
                    self._deal_with(server, task, outcome)
                except UnwritableError as error:
                    self._reason = self._reason or str(error)
                    break
        for task in list(self._running.values()):
            task.cancel()
