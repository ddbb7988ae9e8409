"""The scheduler and the driver under seeded failures: no row is lost, none ends twice, no server waits."""

from __future__ import annotations

import asyncio
import random

import pytest

from mulan_nodes.mulan.batch.journal import Journal
from mulan_nodes.mulan.batch.scheduler import FAILURES, REST, Scheduler
from mulan_nodes.mulan.batch.worker import UNWRITABLE, Job, Outcome
from mulan_nodes.tools.batch.simulation import Campaign, SimulatedFleet, simulate


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_each_row_ends_once(seed):
    chance = random.Random(seed)
    servers, rows = chance.randint(1, 6), chance.randint(1, 60)
    scheduler = Scheduler(servers, depth=chance.randint(1, 3), attempts=3, losses=3)
    for row in range(rows):
        scheduler.add(row)
    now, has, ended, up = 0.0, {index: [] for index in range(servers)}, [], set(range(servers))
    for _ in range(100000):
        if not scheduler.open:
            break
        now += chance.uniform(0, 40)
        for server, row in scheduler.give(now, None if chance.random() < 0.5 else [chance.randrange(servers)]):
            assert server in up and len(has[server]) < scheduler.depth and row not in ended
            assert not any(row in rows_of for rows_of in has.values())
            has[server].append(row)
        for server, row in scheduler.take_back(now):
            assert row in has[server][1:]
            if chance.random() < 0.7:
                has[server].remove(row)
                scheduler.taken_back(row, server, now)
            else:
                scheduler.kept(row, server)
        for server, row in scheduler.double(now):
            assert server in up and not has[server] and row not in ended
            has[server].append(row)
        server = chance.randrange(servers)
        act = chance.random()
        if server not in up:
            up.add(server)
            scheduler.up(server, now)
        elif act < 0.1:
            up.discard(server)
            scheduler.down(server)
            for row in chance.sample(has[server], len(has[server])):
                if row in ended:  # on another server, which had it, too
                    scheduler.taken_back(row, server, now)
                elif not scheduler.lost(row, server, now):
                    ended.append(row)
            has[server] = []
        elif has[server]:
            row = has[server].pop(0)
            if row in ended:
                scheduler.taken_back(row, server, now)
            elif act < 0.3:
                if not scheduler.failed(row, server, now):
                    ended.append(row)
            else:
                scheduler.done(row, server, now, chance.uniform(0.5, 20))
                ended.append(row)
    assert sorted(ended) == list(range(rows))


def test_a_row_that_failed_goes_to_another_server_and_not_for_ever():
    scheduler = Scheduler(3, depth=1, attempts=3)
    scheduler.add(0)
    seen = []
    for _ in range(3):
        ((server, row),) = scheduler.give(0.0)
        seen.append(server)
        again = scheduler.failed(row, server, 0.0)
    assert sorted(seen) == [0, 1, 2] and not again and not scheduler.open


def test_only_the_row_that_ran_counts_the_loss_of_a_server():
    scheduler = Scheduler(1, depth=2, losses=2)
    for row in range(2):
        scheduler.add(row)
    for again in (True, False):
        (_, runs), (_, waits) = scheduler.give(0.0)
        scheduler.down(0)
        assert scheduler.lost(runs, 0, 0.0) is again and scheduler.lost(waits, 0, 0.0)
        scheduler.up(0, 0.0)
    assert scheduler.open == 1


def test_a_server_on_which_all_fails_rests_while_another_works():
    scheduler = Scheduler(2, depth=1)
    for row in range(20):
        scheduler.add(row)
    scheduler.give(0.0)
    for _ in range(FAILURES):
        scheduler.failed(scheduler.servers[0].rows[0], 0, 1.0)
        given = scheduler.give(1.0, [0])
    assert not given and not scheduler.give(REST, [0])
    assert scheduler.give(1.0 + REST, [0])


def test_a_slow_server_does_not_begin_what_a_fast_one_ends_sooner():
    scheduler = Scheduler(2, depth=2)
    for row in range(4):
        scheduler.add(row)
    scheduler.give(0.0)
    scheduler.done(0, 0, 1.0, 1.0)
    scheduler.done(scheduler.servers[0].rows[0], 0, 2.0, 1.0)
    assert [server for server, _ in scheduler.take_back(10.0)] == [1]
    scheduler.done(scheduler.servers[1].rows[0], 1, 10.0, 10.0)
    scheduler.add(9)
    assert scheduler.give(10.0) == [(0, 9)]


def test_the_last_row_that_a_server_is_late_with_is_given_to_an_idle_one_and_the_first_result_counts():
    scheduler = Scheduler(2, depth=1)
    for row in range(3):
        scheduler.add(row)
    assert scheduler.give(0.0) == [(0, 0), (1, 1)]
    scheduler.done(0, 0, 1.0, 1.0)
    assert scheduler.give(1.0) == [(0, 2)]
    scheduler.done(2, 0, 2.0, 1.0)
    assert not scheduler.double(1.5)  # server 1 should end it as soon
    assert scheduler.double(3.0) == [(0, 1)] and not scheduler.double(3.0)
    assert scheduler.failed(1, 0, 3.5) and not scheduler.give(3.5)  # server 1 still has it
    scheduler.done(1, 1, 4.0, 4.0)
    assert not scheduler.open


TIMES = [random.Random(7).gauss(1.2, 0.15) for _ in range(200)]


def test_the_driver_keeps_servers_busy_and_loses_nothing():
    """64 servers, of which some are slow, die and come back, and rows that fail everywhere."""
    result = simulate(Campaign(64, 2000, TIMES, stragglers=0.05, deaths=0.05, away=20, poison=0.002, seed=3))
    assert result.done + result.failed == 2000 and not result.reason and 0 < result.failed < 20
    assert result.cpu / 2000 < 0.005
    assert result.efficiency > 0.9
    alike = simulate(Campaign(64, 6400, TIMES, seed=3))
    assert alike.efficiency > 0.95 and alike.done == alike.runs == 6400 and alike.grown < 20


def test_a_server_that_hangs_holds_up_no_run_and_leaves_no_file(tmp_path):
    class Hangs(SimulatedFleet):
        """The first server never ends its second row."""

        async def run(self, server: int, job: Job) -> Outcome:
            self.calls = getattr(self, "calls", 0) + (server == 0)
            if server == 0 and self.calls == 2:
                await asyncio.sleep(1e9)
            outcome = await super().run(server, job)
            for file in outcome.files:
                (tmp_path / file["name"]).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / file["name"]).touch()
            return outcome

    result = simulate(Campaign(4, 60, TIMES, seed=5), tmp_path, Hangs)
    assert result.done == 60 and result.seconds < 60
    assert len([path for path in (tmp_path / "files").rglob("*.png")]) == 60


def test_the_second_result_of_a_row_is_counted_nowhere_and_leaves_no_file(tmp_path):
    class Late(SimulatedFleet):
        """The second row of the first two servers takes long, that of the second one so long that it goes on."""

        async def run(self, server: int, job: Job) -> Outcome:
            calls = self.__dict__.setdefault("calls", [0] * len(self.servers))
            calls[server] += 1
            outcome = await super().run(server, job)
            if server < 2 and calls[server] == 2:
                await asyncio.sleep((20, 200)[server])
            elif server == 2:
                await asyncio.sleep(8)
            for file in outcome.files:
                (tmp_path / file["name"]).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / file["name"]).touch()
            return outcome

    result = simulate(Campaign(3, 12, TIMES, seed=5), tmp_path, Late)
    with Journal(tmp_path) as journal:
        named = [file["name"] for key in journal.done for file in journal.record(key)["files"]]
    written = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "files").rglob("*.png")}
    assert result.done == 12 and {*named} == written and len(named) == 12


class FullDisk(SimulatedFleet):
    """Servers whose files do not fit on the disk after some rows."""

    fits = 10

    async def run(self, server: int, job: Job) -> Outcome:
        outcome = await super().run(server, job)
        self.fits -= 1
        return outcome if self.fits >= 0 else Outcome(UNWRITABLE, "the disk is full. Make room on it")


def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(tmp_path):
    campaign = Campaign(4, 60, TIMES, seed=5)
    first = simulate(campaign, tmp_path, FullDisk)
    assert "disk is full" in first.reason and 10 <= first.done < 60 and not first.failed
    second = simulate(campaign, tmp_path)
    assert not second.reason and second.done == 60 and not second.failed
