"""A long run against a real server: what becomes of every graph, of the files, and of the memory.

The server is killed in the first part of the run only: the second part is one life of it, whose memory is measured
each time the queue is empty and the models are unloaded. Histories are deleted once they are read, so that what grows
is not ComfyUI's record of the run; and the C library gives large blocks back to the system at once, and free pages
between small ones when the memory is measured, so that it is not the allocator's own store.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import statistics
import time
import urllib.error
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import websocket

from ...mulan.boundary.files import UNFINISHED
from ...mulan.checkpoints.tensor_files import open_tensors
from ...mulan.conditioning.saved_conditioning import load_conditioning
from .. import graphs as templates
from ..comfy_server import ComfyServer, GraphRejected
from ..comfyui import write_example_images
from . import graphs

QUEUE = 4  # graphs that wait or run at a time
HANGS = 180.0  # seconds after which a graph counts as lost
KILLED_PART = 0.25  # of the run
WARM_UP = 0.25  # of the server's last life
SAMPLE_EVERY = 20  # graphs
MOST_GROWTH = 20.0  # MB for 1,000 graphs
INTERRUPTS, FREES, DELETES, VANISHES = 0.05, 0.02, 0.04, 0.05  # how often, for each graph


@dataclass
class Report:
    """What happened."""

    ended: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    acts: Counter = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    samples: list[tuple[int, float]] = field(default_factory=list)  # graphs done in this life, MB
    untrimmed: list[float] = field(default_factory=list)  # MB, before the C library gives free pages back
    held: list[tuple[float, int]] = field(default_factory=list)  # MB that malloc has given out, Python objects
    seconds: float = 0.0

    def growth(self) -> float | None:
        """Return the slope of memory after the warm-up, in MB for 1,000 graphs; None where the run was too short.

        It is the median of the slopes between all pairs of samples: one that was taken before models were unloaded
        does not count.
        """
        last = self.samples[-1][0] if self.samples else 0
        points = [point for point in self.samples if point[0] >= WARM_UP * last]
        if len(points) < 5:
            return None
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2) if b[0] > a[0]]
        return statistics.median(slopes) * 1000

    def passed(self) -> bool:
        growth = self.growth()
        return not (self.lost or self.damaged or self.errors) and (growth is None or growth <= MOST_GROWTH)

    def table(self) -> str:
        growth, total = self.growth(), sum(self.ended.values())
        memory = [f"{memory:.0f}" for _, memory in self.samples]
        rows = [
            ("graphs", f"{total} in {self.seconds / 60:.1f} minutes"),
            *((f"- {name}", str(count)) for name, count in self.ended.most_common()),
            *((f"{name}", str(count)) for name, count in self.acts.most_common()),
            ("lost", f"{len(self.lost)} {'; '.join(self.lost[:5])}".strip()),
            ("damaged or left over files", f"{len(self.damaged)} {'; '.join(self.damaged[:5])}".strip()),
            *((f"error: {message}", str(count)) for message, count in self.errors.most_common()),
            ("memory when idle, MB", f"{' '.join(memory)}"),
            ("before free pages are given back", " ".join(f"{memory:.0f}" for memory in self.untrimmed)),
            ("given out by malloc, MB", " ".join(f"{held:.0f}" for held, _ in self.held)),
            ("Python objects, thousands", " ".join(f"{objects / 1000:.0f}" for _, objects in self.held)),
            ("growth, MB per 1,000 graphs", "too short to tell" if growth is None else f"{growth:.1f}"),
            ("passed", "yes" if self.passed() else "no"),
        ]
        return "\n".join(["| soak | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


class Soak:
    """One run. `folder` keeps the server's log, its output while it runs, and the table."""

    def __init__(self, comfyui: Path, cpu: bool, prompts: int, kills: int, seed: int, folder: Path):
        self.prompts, self.folder = prompts, folder
        self.dice = random.Random(seed)  # noqa: S311
        killed = max(1, int(prompts * KILLED_PART))
        self._kills = {killed * (kill + 1) // (kills + 1) for kill in range(kills)}
        self._files = folder / f"run_{os.getpid()}"
        self._server = ComfyServer(
            comfyui,
            cpu=cpu,
            extra_nodes=Path(__file__).parent / "nodes",
            log=folder / "server.log",
            folder=self._files,
            environment={"MALLOC_MMAP_THRESHOLD_": "131072"},
        )
        self._waiting: dict[str, tuple[str, float]] = {}  # prompt id -> template, when it was posted
        self._deleted: set[str] = set()
        self._done_in_life = 0
        self.report = Report()

    def run(self) -> Report:
        start = time.monotonic()
        write_example_images(self._files / "input")
        try:
            self._start()
            for number in range(1, self.prompts + 1):
                self._step()
                if number in self._kills:
                    self._kill()
                if number % SAMPLE_EVERY == 0:
                    self._sample()
                    self.report.seconds = time.monotonic() - start
                    (self.folder / "soak.md").write_text(self.report.table() + "\n", "utf-8")
            self._drain()
            self._check_files()
        finally:
            self._server.stop()
        self.report.seconds = time.monotonic() - start
        (self.folder / "soak.md").write_text(self.report.table() + "\n", "utf-8")
        return self.report

    def _start(self) -> None:
        self._server.start()
        self._server.socket.close()  # results are read from the history
        self._done_in_life = 0
        self.report.samples.clear()
        self.report.held.clear()
        self.report.untrimmed.clear()
        self._post("mulan_save_conditioning", templates.load("mulan_save_conditioning"))
        self._drain()

    def _step(self) -> None:
        """Post a graph, and do what people do besides."""
        while len(self._waiting) >= QUEUE:
            self._collect()
        name, graph = graphs.mixed(self.dice)
        vanishing = self._acts("lost clients", VANISHES)
        prompt = self._post(name, graph, vanishing)
        if self._acts("deletes", DELETES):
            self._deleted.add(prompt)
            self._server.ask("/queue", {"delete": [prompt]})
        if self._acts("interrupts", INTERRUPTS):
            time.sleep(self.dice.uniform(0, 0.4))
            self._server.interrupt()
        if self._acts("frees", FREES):
            self._server.free()

    def _acts(self, name: str, share: float) -> bool:
        acts = self.dice.random() < share
        self.report.acts[name] += acts
        return acts

    def _post(self, name: str, graph: dict, vanishing: bool = False) -> str:
        client = uuid.uuid4().hex
        connection = None
        if vanishing:
            connection = websocket.create_connection(f"ws://{self._server.address}/ws?clientId={client}", timeout=60)
        try:
            answer = self._server.ask("/prompt", {"prompt": graph, "client_id": client})
        except urllib.error.HTTPError as refusal:
            raise GraphRejected(json.loads(refusal.read())) from None
        if answer["node_errors"]:  # it runs only in part
            raise GraphRejected(answer)
        if connection is not None:
            connection.shutdown()  # without a word, as a lost network
        self._waiting[answer["prompt_id"]] = name, time.monotonic()
        return answer["prompt_id"]

    def _collect(self) -> None:
        """Take what has ended out of the history."""
        time.sleep(0.05)
        for prompt, (name, posted) in list(self._waiting.items()):
            entry = self._server.ask(f"/history/{prompt}").get(prompt)
            if entry is not None:
                self._ended(name, entry)
                self._server.ask("/history", {"delete": [prompt]})
            elif prompt in self._deleted and not self._is_queued(prompt):
                self.report.ended["deleted"] += 1
            elif time.monotonic() - posted > HANGS:
                self.report.lost.append(f"{name} after {HANGS:.0f} s")
                self.report.ended["lost"] += 1
            else:
                continue
            del self._waiting[prompt]

    def _ended(self, name: str, entry: dict) -> None:
        self._done_in_life += 1
        events = dict(entry["status"]["messages"])
        if entry["status"]["status_str"] == "success":
            self.report.ended["success"] += 1
        elif "execution_interrupted" in events:
            self.report.ended["interrupted"] += 1
        else:
            self.report.ended["error"] += 1
            failure = events.get("execution_error", {})
            said = f"{name}: {failure.get('exception_type')}: {failure.get('exception_message', '').strip()[:200]}"
            self.report.errors[said.replace("\n", " ").replace("|", "/")] += 1

    def _is_queued(self, prompt: str) -> bool:
        queue = self._server.ask("/queue")
        return any(prompt == item[1] for item in queue["queue_running"] + queue["queue_pending"])

    def _drain(self) -> None:
        while self._waiting:
            self._collect()

    def _sample(self) -> None:
        self._drain()
        self._server.free()
        server = psutil.Process(self._server.process.pid)
        memory, calm = math.inf, 0
        for _ in range(60):  # the server unloads between graphs, looking once a second
            time.sleep(0.25)
            now = server.memory_info().rss / 1e6
            memory, calm = now, calm + 1 if now == memory else 0
            if calm == 10:
                break
        self.report.untrimmed.append(memory)
        told = self._ask_memory()
        self.report.samples.append((self._done_in_life, told["resident"]))
        self.report.held.append((told["held"], told["objects"]))

    def _ask_memory(self) -> dict:
        """Return what the server's own node tells."""
        number = len(self.report.samples)
        graph = {"1": {"class_type": "SoakMemory", "inputs": {"number": number}}}
        prompt = self._server.ask("/prompt", {"prompt": graph})["prompt_id"]
        while not (entry := self._server.ask(f"/history/{prompt}").get(prompt)):
            time.sleep(0.05)
        self._server.ask("/history", {"delete": [prompt]})
        return json.loads(entry["outputs"]["1"]["text"][0])

    def _kill(self) -> None:
        """Kill the server while graphs run, start another one, and look at what the first left."""
        time.sleep(self.dice.uniform(0, 0.5))
        self._collect()
        self._server.kill()
        self.report.acts["kills"] += 1
        self.report.ended["killed with the server"] += len(self._waiting)
        self._waiting.clear()
        self._server.stop()
        self._check_files(leftovers=False)
        self._start()

    def _check_files(self, leftovers: bool = True) -> None:
        """Read every file of ours in the output folder, as a loading node would."""
        output = self._files / "output"
        for file in sorted(path for path in output.rglob("*") if path.is_file()):
            kind = file.relative_to(output).parts[0]
            try:
                if file.name.endswith(UNFINISHED):
                    if leftovers:
                        raise ValueError("it was left over")
                elif kind == "conditioning":
                    load_conditioning(file)
                elif kind == "detections":
                    json.loads(file.read_text("utf-8"))
                elif kind == "internvl":
                    cache = open_tensors(file)
                    assert cache.read("vectors").isfinite().all()
            except Exception as error:
                self.report.damaged.append(f"{file.name}: {error}")
