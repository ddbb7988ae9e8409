"""A row on one server, from the first question to the files on this disk.

Whatever a row needs is in a `Job`, whatever became of it in an `Outcome`; both are plain values that travel between
processes. The server's history is the truth; its events only say when to look.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..boundary.files import UnwritableError, naming
from ..servers.ended import failure_of, succeeded
from ..servers.server_client import LostError, RefusedError, ServerClient
from ..servers.workflow import Graph

DONE, FAILED, LOST, STOPPED, UNWRITABLE = "done", "failed", "lost", "stopped", "unwritable"
LOOK_EVERY = 3.0  # seconds between two looks without an event
MAX_TEXT = 2**16  # characters of a node's text that a record keeps
_ENDINGS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True)
class Job:
    """An attempt of a row: what the server gets, and where its files go here."""

    key: str
    prompt_id: str
    graph: Graph
    folder: Path
    stem: str  # of the files' names
    uploads: tuple[tuple[Path, str], ...] = ()  # file of this machine, name on the server
    must_save: bool = False  # a job without a file is a failed one


@dataclass
class Outcome:
    """What became of a job. kind: DONE, FAILED, LOST, STOPPED or UNWRITABLE."""

    kind: str
    message: str = ""
    files: list[dict] = field(default_factory=list)  # name below the job's folder, node, sha256, bytes
    texts: dict[str, list[str]] = field(default_factory=dict)  # node -> what it showed
    seconds: float = 0.0  # on the server, without waiting
    details: dict = field(default_factory=dict)  # of a failure, in the server's words


class Worker:
    """Runs jobs on one server, each to its end. Jobs are started together; the server runs them in order."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, patience: float = 15.0):
        self._client = ServerClient(url, headers, uuid.uuid4().hex)
        self._patience = patience
        self._news = asyncio.Condition()
        self._jobs: set[str] = set()  # prompt ids that `run` is about
        self._posted: set[str] = set()  # those that the server has, or had
        self._taken: set[str] = set()  # those that were taken back
        self._stopping = False
        self._uploaded: dict[str, str] = {}
        self._listening: asyncio.Task | None = None

    async def open(self) -> dict:
        """Return the server's nodes. Raises LostError, RefusedError, and may then be called again."""
        if self._listening is None:
            await self._client.open()
            self._listening = asyncio.create_task(self._listen())
        return await self._client.object_info()

    async def close(self) -> None:
        """End the connections; what the server runs goes on."""
        if self._listening:
            self._listening.cancel()
            with suppress(asyncio.CancelledError):
                await self._listening
        await self._client.close()

    async def is_up(self) -> bool:
        """Return whether the server answers."""
        return await self._client.is_up()

    async def run(self, job: Job) -> Outcome:
        """Run a job to its end; it is found again where the server has it already."""
        self._jobs.add(job.prompt_id)
        try:
            entry = await self._patiently(self._run, job)
            if entry is None:
                return Outcome(STOPPED)
            return await self._patiently(self._result, job, entry)
        except (LostError, ForgottenError) as error:
            self._uploaded.clear()  # it may come back with an empty folder
            return Outcome(LOST, str(error))
        except RefusedError as error:
            return Outcome(FAILED, str(error), details=error.details)
        except UnwritableError as error:
            return Outcome(UNWRITABLE, str(error))
        finally:
            for known in (self._jobs, self._posted, self._taken):
                known.discard(job.prompt_id)

    async def take_back(self, prompt_id: str) -> bool:
        """Take a job out of the queue; return whether it was there, and had not begun. Its `run` ends as STOPPED."""
        if prompt_id not in self._posted:
            return False
        try:
            await self._client.delete([prompt_id])
            if prompt_id in await self._client.queued() or await self._client.history(prompt_id) is not None:
                return False
        except (LostError, RefusedError):
            return False
        self._taken.add(prompt_id)
        await self._wake()
        return True

    async def stop(self) -> None:
        """Interrupt what runs and take out what waits, of these jobs only."""
        self._stopping = True
        ids = list(self._jobs)
        with suppress(LostError, RefusedError):
            await self._client.delete(ids)
            for prompt_id in ids:
                await self._client.interrupt(prompt_id)
        await self._wake()

    # --- within

    async def _patiently(self, call, *arguments):
        """Call, again and again while the server does not answer, up to `patience` seconds in succession."""
        clock = asyncio.get_running_loop().time
        first: float | None = None
        while True:
            began = clock()
            try:
                return await call(*arguments)
            except LostError:
                # A call that held long was connected: patience begins anew
                first = began if first is None or began - first > 2 * self._patience else first
                if self._stopping or clock() - first > self._patience:
                    raise
                await asyncio.sleep(min(1.0, self._patience / 10))

    async def _run(self, job: Job) -> dict | None:
        """Return the history's entry of a job, posted if the server does not have it; None when it was stopped."""
        entry = await self._client.history(job.prompt_id)
        if entry is not None and not succeeded(entry) and job.prompt_id not in self._posted:
            await self._client.forget(job.prompt_id)  # an earlier run's, interrupted: its id is used again
            entry = None
        if entry is not None:
            return entry
        if job.prompt_id not in self._posted and job.prompt_id not in await self._client.queued():
            graph = await self._with_uploads(job)
            if self._stopping:
                return None
            await self._client.post(graph, job.prompt_id)
        self._posted.add(job.prompt_id)
        return await self._end(job.prompt_id)

    async def _end(self, prompt_id: str) -> dict | None:
        """Wait for a job's entry in the history. Raises LostError where the server forgot it."""
        missing = 0
        while True:
            entry = await self._client.history(prompt_id)
            if entry is not None:
                return entry
            missing = 0 if prompt_id in await self._client.queued() else missing + 1
            if missing:
                if self._stopping or prompt_id in self._taken:
                    return None
                if missing >= 3:
                    raise ForgottenError(f"{self._client.name} does not know the row any more: it was restarted")
                await asyncio.sleep(0.1)  # between the queue and the history it is in neither for a moment
                continue
            with suppress(asyncio.TimeoutError):
                async with self._news:
                    await asyncio.wait_for(self._news.wait(), LOOK_EVERY)

    async def _with_uploads(self, job: Job) -> Graph:
        names = {}
        for file, name in job.uploads:
            if name not in self._uploaded:
                try:
                    self._uploaded[name] = await self._client.upload(file, name)
                except FileNotFoundError:
                    raise RefusedError(f"{file} is gone: it was there when the table was checked") from None
            names[name] = self._uploaded[name]
        if all(name == stored for name, stored in names.items()):
            return job.graph
        return {
            node_id: {
                **node,
                "inputs": {
                    field: names.get(value, value) if isinstance(value, str) else value
                    for field, value in node["inputs"].items()
                },
            }
            for node_id, node in job.graph.items()
        }

    async def _result(self, job: Job, entry: dict) -> Outcome:
        status = entry.get("status") or {}
        if not succeeded(entry):
            failure = failure_of(entry)
            return Outcome(STOPPED if failure.was_stopped else FAILED, failure.message, details=failure.details)
        outcome = Outcome(DONE, seconds=_seconds(status))
        outputs = entry.get("outputs") or {}
        for node_id in sorted(outputs, key=lambda node: (len(node), node)):
            if texts := _texts(outputs[node_id]):
                outcome.texts[node_id] = texts
            for where in _files(outputs[node_id]):
                await self._download(job, node_id, where, outcome)
        if job.must_save and not outcome.files:
            return Outcome(FAILED, f"{self._client.name} names no saved file: update MuLan Nodes on it")
        return outcome

    async def _download(self, job: Job, node: str, where: Mapping[str, str], outcome: Outcome) -> None:
        number = len(outcome.files)
        suffix = Path(str(where["filename"])).suffix.lower()[:12]
        name = f"{job.stem}{f'_{number}' if number else ''}{suffix}"
        target = job.folder / name
        with naming(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        about = await self._client.download(where, target)
        outcome.files.append({"name": name, "node": node, **about})

    async def _listen(self) -> None:
        while True:
            await self._client.events(self._see)
            await self._wake()
            await asyncio.sleep(1.0)

    def _see(self, event: str) -> None:
        if event in _ENDINGS or event == "status":
            self._waking = asyncio.ensure_future(self._wake())

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()


class ForgottenError(RuntimeError):
    """The server is there, and does not know a row that it had."""


def _seconds(status: dict) -> float:
    times = {name: data.get("timestamp", 0) for name, data in status.get("messages") or ()}
    return max(times.get("execution_success", 0) - times.get("execution_start", 0), 0) / 1000


def _files(output: dict) -> list[dict]:
    """Return the files in a node's output: images, sound, video, whatever has a file name and a folder of ComfyUI's."""
    return [
        item
        for values in output.values()
        if isinstance(values, list)
        for item in values
        if isinstance(item, dict) and isinstance(item.get("filename"), str) and "type" in item
    ]


def _texts(output: dict) -> list[str]:
    texts = output.get("text")
    if not isinstance(texts, list):
        return []
    return [text if len(text) <= MAX_TEXT else text[:MAX_TEXT] for text in map(_text, texts)]


def _text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
