"""The driver itself, its scheduler and its journal, over servers that only wait: in a clock that jumps.

What is simulated is the servers and the time; every decision and every line of the journal is the real one's.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import random
import selectors
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from mulan_nodes.mulan.batch.driver import Driver, Watcher
from mulan_nodes.mulan.batch.journal import Journal
from mulan_nodes.mulan.batch.rows import Row
from mulan_nodes.mulan.batch.scheduler import Scheduler
from mulan_nodes.mulan.batch.work import RowWork
from mulan_nodes.mulan.batch.worker import DONE, FAILED, LOST, STOPPED, Job, Outcome
from mulan_nodes.mulan.servers.workflow import Graph

T = TypeVar("T")
LATENCY = 0.01  # seconds from a server's end of a row to its files here


class _Jump(selectors.DefaultSelector):
    """Waits by moving the clock."""

    now = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only where everybody waits."""

    def __init__(self):
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


@dataclass(frozen=True)
class Campaign:
    """seconds: measured times of rows, of which each row gets one. A share of the servers is `slowness` times slower
    than the others; a share dies once, at a random moment, with what it had, and is back after `away` seconds (or
    never, with 0). A share of the rows fails on every server.
    """

    servers: int
    rows: int
    seconds: Sequence[float]
    stragglers: float = 0.0
    slowness: float = 3.0
    deaths: float = 0.0
    away: float = 0.0
    poison: float = 0.0
    seed: int = 0


@dataclass
class Result:
    """ideal: seconds of the best plan that knows everything before it begins. unforeseen: of one that learns how long
    a row takes, that it fails or that a server dies when it happens.
    """

    campaign: Campaign
    seconds: float
    ideal: float
    unforeseen: float
    cpu: float  # of the driver, seconds in all
    grown: float  # MB of memory from the tenth part of the rows to the end
    done: int
    failed: int
    runs: int  # that ended, of all rows
    reason: str = ""
    per_row: dict[str, int] = field(default_factory=dict)

    @property
    def efficiency(self) -> float:
        return self.ideal / self.seconds


class _Server:
    """Does one row after another."""

    def __init__(self, fleet: SimulatedFleet, factor: float, dies: float | None, away: float):
        self.fleet, self.factor, self.dies, self.away = fleet, factor, dies, away
        self.queue: list[tuple[Job, asyncio.Future]] = []
        self.comes = asyncio.Event()
        self.is_up = True
        self.task = asyncio.ensure_future(self.work())
        self.death = asyncio.ensure_future(self.die()) if dies is not None else None

    async def work(self) -> None:
        while True:
            while not self.queue:
                self.comes.clear()
                await self.comes.wait()
            job, future = self.queue[0]
            seconds = self.fleet.seconds[job.key] * self.factor
            await asyncio.sleep(seconds)
            self.queue.pop(0)
            self.fleet.runs.append(job.key)
            kind = FAILED if job.key in self.fleet.poison else DONE
            if not future.done():
                file = {"name": f"{job.stem}.png", "node": "9", "sha256": "0" * 64, "bytes": 10000}
                future.set_result(Outcome(kind, "bad" * (kind == FAILED), [file] if kind == DONE else [], {}, seconds))

    async def die(self) -> None:
        await asyncio.sleep(self.dies or 0)
        self.is_up = False
        self.task.cancel()
        for _, future in self.queue:
            if not future.done():
                future.set_result(Outcome(LOST, "it died"))
        self.queue.clear()
        if self.away:
            await asyncio.sleep(self.away)
            self.is_up = True
            self.task = asyncio.ensure_future(self.work())


class SimulatedFleet:
    """Servers as the driver reaches them."""

    def __init__(self, campaign: Campaign, seconds: dict[str, float], poison: set[str], factors, deaths):
        self.seconds, self.poison, self.runs = seconds, poison, []
        self.servers = [
            _Server(self, factor, dies, campaign.away) for factor, dies in zip(factors, deaths, strict=True)
        ]

    async def run(self, server: int, job: Job) -> Outcome:
        of = self.servers[server]
        if not of.is_up:
            return Outcome(LOST, "it is away")
        future = asyncio.get_running_loop().create_future()
        of.queue.append((job, future))
        of.comes.set()
        outcome = await future
        await asyncio.sleep(LATENCY)
        return outcome

    async def take_back(self, server: int, prompt_id: str) -> bool:
        await asyncio.sleep(LATENCY)
        queue = self.servers[server].queue
        for place, (job, future) in enumerate(queue):
            if place and job.prompt_id == prompt_id:
                del queue[place]
                future.set_result(Outcome(STOPPED))
                return True
        return False

    async def is_up(self, server: int) -> bool:
        return self.servers[server].is_up

    async def stop(self, server: int) -> None:
        for _, future in self.servers[server].queue:
            if not future.done():
                future.set_result(Outcome(STOPPED))


class _Memory(Watcher):
    """Measures the process at a tenth of the rows."""

    def __init__(self, at: int):
        self.at, self.count, self.before = at, 0, 0.0

    def done(self, server: int, task: int, outcome: Outcome) -> None:
        self.count += 1
        if self.count == self.at:
            self.before = resident_memory()


def table(seconds: Sequence[float], rows: int = 10_000) -> str:
    """Simulate the campaigns of the documents; return their table."""
    lines = [
        "| servers | stragglers | deaths | rows | run | of the best plan | of one that foresees nothing "
        "| driver per row | memory |",
        "| --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for servers in (64, 256, 1000):
        for stragglers, deaths in ((0.0, 0.0), (0.05, 0.02)):
            for count in (rows, servers * 40) if servers * 40 > rows else (rows,):
                found = simulate(Campaign(servers, count, seconds, stragglers, 3.0, deaths, 60.0, 0.001, 1))
                cells = (
                    f"{servers} | {stragglers:.0%} | {deaths:.0%} | {count} | {found.seconds:.0f} s",
                    f"{found.efficiency:.3f} | {found.unforeseen / found.seconds:.3f}",
                    f"{1000 * found.cpu / count:.2f} ms | {found.grown:+.0f} MB",
                )
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def simulate(campaign: Campaign, folder: Path | None = None, fleet: type[SimulatedFleet] = SimulatedFleet) -> Result:
    """Run a campaign in a folder of its own."""
    place = folder or Path(tempfile.mkdtemp(prefix="batch_simulation_"))
    try:
        return in_simulated_time(_simulate(campaign, place, fleet))
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


def in_simulated_time(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop whose time jumps to what happens next."""
    loop = JumpingLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(work)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        asyncio.set_event_loop(None)


async def _simulate(campaign: Campaign, folder: Path, fleet_class: type[SimulatedFleet]) -> Result:
    chance = random.Random(campaign.seed)
    workflow: Graph = {"9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}}}
    rows = [
        Row(line, f"row {line}", "", (("prompt", f"a prompt {line}"),), ((("6", "text"), f"a prompt {line}"),), (),
            f"{chance.getrandbits(128):032x}")
        for line in range(2, campaign.rows + 2)
    ]  # fmt: skip
    seconds = {row.key: chance.choice(campaign.seconds) for row in rows}
    poison = {row.key for row in rows if chance.random() < campaign.poison}
    slow = set(chance.sample(range(campaign.servers), round(campaign.stragglers * campaign.servers)))
    factors = [campaign.slowness if index in slow else 1.0 for index in range(campaign.servers)]
    mean = sum(seconds.values()) / len(seconds)
    span = mean * campaign.rows / sum(1 / factor for factor in factors)
    dying = set(chance.sample(range(campaign.servers), round(campaign.deaths * campaign.servers)))
    deaths = [chance.uniform(0, span) if index in dying else None for index in range(campaign.servers)]
    ideal = _best_plan(list(seconds.values()), factors, deaths, campaign.away)
    attempts = [(seconds[row.key], 3 if row.key in poison else 1) for row in rows]
    unforeseen = _plan_without_foresight(attempts, factors, deaths, campaign.away)

    fleet = fleet_class(campaign, seconds, poison, factors, deaths)
    memory = _Memory(max(campaign.rows // 10, 1))
    with _QuickJournal(folder) as journal:
        work = RowWork(rows, workflow, folder)
        names = [f"http://gpu{index}:8188" for index in range(campaign.servers)]
        driver = Driver(work, fleet, journal, Scheduler(campaign.servers), names, memory, fold=lambda: journal.fold())
        start, cpu = asyncio.get_running_loop().time(), time.process_time()
        reason = await driver.run()
        cpu = time.process_time() - cpu
        took = asyncio.get_running_loop().time() - start
        done, failed = len(journal.done), len(journal.failed)
        grown = resident_memory() - memory.before
    return Result(campaign, took, ideal, unforeseen, cpu, grown, done, failed, len(fleet.runs), reason)


def _best_plan(
    seconds: Sequence[float], factors: Sequence[float], deaths: Sequence[float | None], away: float
) -> float:
    """Return when the last row ends in a plan that knows all times, slow servers and deaths before it begins: the
    longest row first, always where it ends soonest, nothing begun that a death would cut off.
    """
    factor, free = np.array(factors), np.zeros(len(factors))
    dies = np.array([np.inf if death is None else death for death in deaths])
    back = dies + (away or np.inf)
    for row in sorted(seconds, reverse=True):
        finish = free + row * factor
        finish = np.where((free < back) & (finish > dies), back + row * factor, finish)
        server = int(finish.argmin())
        free[server] = finish[server]
    return float(free.max())


def _plan_without_foresight(
    rows: Sequence[tuple[float, int]], factors: Sequence[float], deaths: Sequence[float | None], away: float
) -> float:
    """Return when the last row ends in a plan that knows how fast each server is and hears of all at once, and foresees
    nothing: the rows in the table's order, each where it should end soonest; what failed or was cut off before others.

    rows: seconds and attempts of each.
    """
    mean, factor, free = np.mean([seconds for seconds, _ in rows]), np.array(factors), np.zeros(len(factors))
    dies = np.array([np.inf if death is None else death for death in deaths])
    fresh = deque(rows)
    again: list[tuple[float, float, int]] = []  # since when, seconds, attempts that are left
    end = 0.0
    while fresh or again:
        server = int((free + mean * factor).argmin())
        if again and (not fresh or again[0][0] <= free[server]):
            since, seconds, attempts = heapq.heappop(again)
            server = int((np.maximum(free, since) + mean * factor).argmin())
        else:
            since, (seconds, attempts) = 0.0, fresh.popleft()
        begin = max(float(free[server]), since)
        finish = begin + seconds * factors[server]
        if begin <= dies[server] < finish:
            heapq.heappush(again, (float(dies[server]), seconds, attempts))
            free[server] = dies[server] + (away or np.inf)
            dies[server] = np.inf
            continue
        free[server] = finish
        end = max(end, finish)
        if attempts > 1:
            heapq.heappush(again, (finish, seconds, attempts - 1))
    return end


class _QuickJournal(Journal):
    """Leaves out the wait for the disk, during which the driver does nothing."""

    def sync(self) -> None:
        pass


def resident_memory() -> float:
    """Return the memory of this process in MB, after what can be freed is."""
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6
