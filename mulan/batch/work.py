"""The rows of a table as numbered tasks: what the scheduler orders, and the driver sends out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from .journal import CONDITIONING, DONE
from .placeholders import Graph
from .rows import Row, manifest_columns, prompt_id
from .scheduler import SAMPLE
from .worker import Job, Outcome

FILES = "files"  # below the folder of a run
PER_FOLDER = 500  # rows whose files lie in one folder
_NAME = re.compile(r"[^\w.-]+")


class Work(Protocol):
    """Numbered tasks. Those that need others wait until these are done."""

    def __len__(self) -> int: ...

    def key(self, task: int) -> str:
        """Return what the journal calls a task."""
        ...

    def lane(self, task: int) -> int:
        """Return ENCODE or SAMPLE."""
        ...

    def needs(self, task: int) -> Sequence[int]:
        """Return the tasks that a task waits for."""
        ...

    def job(self, task: int, attempt: int) -> Job:
        """Return what a server gets."""
        ...

    def record(self, task: int) -> tuple[str, dict]:
        """Return the kind of a task's record, and what it says besides the outcome."""
        ...


class RowWork:
    """A task per row."""

    def __init__(self, rows: Sequence[Row], workflow: Graph, folder: Path):
        self._rows, self._workflow, self._folder = rows, workflow, folder

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, task: int) -> str:
        return self._rows[task].key

    def lane(self, task: int) -> int:
        return SAMPLE

    def needs(self, task: int) -> Sequence[int]:
        return ()

    def job(self, task: int, attempt: int) -> Job:
        row = self._rows[task]
        return Job(
            row.key,
            prompt_id(row.key, attempt),
            row.graph(self._workflow),
            self._folder,
            file_stem(row),
            tuple((upload.path, upload.name) for upload in row.uploads),
        )

    def record(self, task: int) -> tuple[str, dict]:
        return DONE, {"key": self.key(task), **manifest_columns(self._rows[task])}


def file_stem(row: Row) -> str:
    """Return the name of a row's files below the folder of a run, without ending."""
    name = _NAME.sub("_", row.id).strip("._")[:60] or "row"
    return f"{FILES}/{(row.line - 1) // PER_FOLDER:04}/{name}-{row.key[:8]}"


def failure(work: Work, task: int, outcome: Outcome, server: str, attempts: int) -> dict:
    """Return the record of a task that failed for good."""
    _, about = work.record(task)
    details = {"details": outcome.details} if outcome.details else {}
    return {**about, "error": outcome.message, "server": server, "attempts": attempts, **details}


def success(work: Work, task: int, outcome: Outcome, server: str, attempts: int) -> tuple[str, dict]:
    """Return the kind and the record of a task that is done."""
    kind, about = work.record(task)
    record = {**about, "files": outcome.files, "seconds": outcome.seconds, "server": server, "attempts": attempts}
    return kind, record if kind == CONDITIONING else {**record, "texts": outcome.texts}
