"""A table over real ComfyUI servers while servers, workers and the driver are killed: what is lost, what comes twice,
and whether every file is the one that a single server draws.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mulan_nodes.mulan.batch.journal import JOURNAL, MANIFEST
from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import ComfyServer, free_port
from mulan_nodes.tools.tinyworld.captions import LANGUAGES, full_caption
from mulan_nodes.tools.tinyworld.world import PALETTE, SHAPES, SIZES, Thing

ACTS = ("server", "worker", "driver")
AWAY = 2.0  # seconds until a killed server is started again
WITHIN = 3600.0


@dataclass
class Trial:
    """What was seen. kills: (act, rows that were done at that moment)."""

    rows: int
    seconds: dict[str, float] = field(default_factory=dict)
    kills: list[tuple[str, int]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def passed(self) -> bool:
        return not (self.lost or self.twice or self.unequal)

    def table(self) -> str:
        lines = [f"{self.rows} rows"]
        lines += [f"{name}: {seconds:.0f} s" for name, seconds in self.seconds.items()]
        lines.append("killed: " + ", ".join(f"{act} after {done} rows" for act, done in self.kills))
        lines.append(f"lost: {self.lost or 'none'}, twice: {self.twice or 'none'}, unequal: {self.unequal or 'none'}")
        return "\n".join(lines)


@contextmanager
def servers(comfyui: Path, count: int, folder: Path) -> Iterator[list[ComfyServer]]:
    """Start servers with ports of their own and folders that stay."""
    started = [ComfyServer(comfyui, port=free_port(), folder=folder / f"server{index}") for index in range(count)]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(ComfyServer.start, started))
        yield started
    finally:
        for server in started:
            server.stop()


def seconds_of(out: Path) -> list[float]:
    """Return the measured seconds of each row of a run."""
    return [record["seconds"] for record in records(out).values()]


def workflow(steps: int) -> dict:
    """Return the graph that draws a row."""
    return graphs.change(graphs.load("mulan_text_to_image"), "KSampler", steps=steps)


def write_table(path: Path, rows: int, seed: int) -> None:
    """Write a table of prompts in the languages of the tiny models."""
    chance = random.Random(seed)
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "prompt", "language", "seed"])
        for number in range(rows):
            language = list(LANGUAGES)[number % len(LANGUAGES)]
            thing = Thing(chance.choice(list(PALETTE)), chance.choice(list(SHAPES)), chance.choice(list(SIZES)))
            table.writerow([f"row-{number:05}", full_caption(thing, language), language, chance.getrandbits(48)])


class Run:
    """The command in a process of its own."""

    def __init__(
        self, folder: Path, table: Path, graph: Path, urls: Sequence[str], out: Path, more: Sequence[str] = ()
    ):
        self.out, self.log = out, folder / f"{out.name}.log"
        command = [sys.executable, "-m", "mulan_nodes.mulan.batch", "run", str(table), str(graph)]
        command += ["--servers", *urls, "--set", "Prompt.text=prompt", "KSampler.seed=seed", "--out", str(out)]
        command += ["--patience", "3", *more]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=os.name == "posix"
            )

    def done(self) -> int:
        """Return how many rows are done on disk."""
        return len(done_keys(self.out))

    def wait(self, rows: int) -> bool:
        """Wait until so many rows are done; return False where the command ended before."""
        deadline = time.monotonic() + WITHIN
        while self.process.poll() is None and time.monotonic() < deadline:
            if self.done() >= rows:
                return True
            time.sleep(0.1)
        return False

    def worker(self, chance: random.Random) -> psutil.Process:
        """Return the process of one of the workers; wait for them where the command has just begun."""
        deadline = time.monotonic() + WITHIN
        while not (found := self._workers()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the command has no workers:\n{self.words()}")
            time.sleep(0.1)
        return chance.choice(sorted(found, key=lambda process: process.pid))

    def end(self) -> None:
        """Wait for the command's end."""
        self.process.wait(WITHIN)

    def kill(self) -> None:
        """End the command at once; harmless where it has ended."""
        self.process.kill()
        self.process.wait()

    def _workers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith("ray::BatchWorker"):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def words(self) -> str:
        return self.log.read_text("utf-8", "replace")


def done_keys(out: Path) -> list[str]:
    """Return the keys of the records of rows that are done, each as often as it stands there."""
    keys = {}
    for name in (MANIFEST, JOURNAL):
        if (out / name).is_file():
            for line in (out / name).read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n") and b'"kind":"done"' in line:
                    record = json.loads(line)
                    keys[record["key"], name] = keys.get((record["key"], name), 0) + 1
    return [key for (key, _), count in keys.items() for _ in range(count)]


def records(out: Path) -> dict[str, dict]:
    """Return the manifest by a row's id."""
    if not (out / MANIFEST).is_file():
        return {}
    lines = (out / MANIFEST).read_text("utf-8").splitlines()
    found = [record for record in map(json.loads, lines) if record["kind"] == "done"]
    return {record["id"]: record for record in found}


def try_kills(
    servers: Sequence[ComfyServer],
    rows: int,
    acts: Sequence[str],
    seed: int,
    folder: Path,
    steps: int = 2,
    restart: bool = True,
) -> Trial:
    """Draw a table on one server, then on all while `acts` happen at seeded moments, and compare.

    Servers have ports of their own, and folders that stay. restart: killed servers come back.
    """
    trial, chance = Trial(rows), random.Random(seed)
    table, graph = folder / "table.csv", folder / "workflow.json"
    write_table(table, rows, seed)
    graph.write_text(json.dumps(workflow(steps)), "utf-8")
    urls = [server.url for server in servers]

    start = time.monotonic()
    alone = Run(folder, table, graph, urls[:1], folder / "one")
    try:
        alone.end()
    finally:
        alone.kill()
    trial.seconds["one server"] = time.monotonic() - start
    trial.log.append(alone.words())
    servers[0].ask("/history", {"clear": True})  # else rows that it gets again would be found there, not drawn

    start = time.monotonic()
    run, restarts = Run(folder, table, graph, urls, folder / "all"), []
    up = list(servers)
    moments = sorted(chance.sample(range(1, max(rows - len(servers) * 2, len(acts) + 1)), len(acts)))
    try:
        for act, moment in zip(chance.sample(list(acts), len(acts)), moments, strict=True):
            if not run.wait(moment):
                break
            trial.kills.append((act, run.done()))
            if act == "server":
                server = up.pop(chance.randrange(len(up)))
                server.kill()
                if restart:
                    restarts.append(threading.Thread(target=_restart, args=(server, up)))
                    restarts[-1].start()
            elif act == "worker":
                run.worker(chance).kill()
            else:
                if act == "stop":
                    run.process.send_signal(signal.SIGINT)
                    run.process.wait(60)
                run.kill()
                run = Run(folder, table, graph, urls, folder / "all")
        run.end()
    finally:
        run.kill()
        for thread in restarts:
            thread.join()
    trial.seconds[f"{len(servers)} servers, {len(acts)} kills"] = time.monotonic() - start
    trial.log.append(run.words())
    _compare(trial, folder / "one", folder / "all")
    return trial


def _restart(server: ComfyServer, up: list[ComfyServer]) -> None:
    time.sleep(AWAY)
    server.stop()
    server.start()
    up.append(server)


def _compare(trial: Trial, one: Path, all_: Path) -> None:
    """Fill in what is lost, twice or unequal."""
    expected, found = records(one), records(all_)
    trial.lost = sorted(set(expected) - set(found)) + [f"row {number}" for number in range(len(expected), trial.rows)]
    keys = done_keys(all_)
    trial.twice = sorted({key for key in keys if keys.count(key) > 1})
    files = [file for file in (all_ / "files").rglob("*") if file.is_file()]
    listed = {str(all_ / file["name"]) for record in found.values() for file in record["files"]}
    trial.twice += sorted(str(file) for file in files if str(file) not in listed)
    for name, record in found.items():
        own, theirs = ([file["sha256"] for file in of["files"]] for of in (record, expected.get(name, {"files": []})))
        drawn = [hashlib.sha256((all_ / file["name"]).read_bytes()).hexdigest() for file in record["files"]]
        if own != theirs or drawn != own:
            trial.unequal.append(name)
