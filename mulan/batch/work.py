"""The rows of a table as numbered tasks: what the scheduler orders, and the driver sends out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..servers.workflow import Graph
from .rows import Row, prompt_id
from .worker import Job, Outcome

FILES = "files"  # below the folder of a run
PER_FOLDER = 500  # rows whose files lie in one folder
_NAME = re.compile(r"[^\w.-]+")


class Work(Protocol):
    """Numbered tasks."""

    def __len__(self) -> int: ...

    def key(self, task: int) -> str:
        """Return what the journal calls a task."""
        ...

    def job(self, task: int, attempt: int) -> Job:
        """Return what a server gets."""
        ...

    def record(self, task: int) -> dict:
        """Return what a task's record says besides the outcome."""
        ...


class RowWork:
    """A task per row."""

    def __init__(self, rows: Sequence[Row], workflow: Graph, folder: Path):
        self._rows, self._workflow, self._folder = rows, workflow, folder

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, task: int) -> str:
        return self._rows[task].key

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

    def record(self, task: int) -> dict:
        row = self._rows[task]
        about = {"id": row.id, "line": row.line, "language": row.language, "columns": dict(row.columns)}
        return {"key": row.key, **about}


def file_stem(row: Row) -> str:
    """Return the name of a row's files below the folder of a run, without ending."""
    name = _NAME.sub("_", row.id).strip("._")[:60] or "row"
    return f"{FILES}/{(row.line - 1) // PER_FOLDER:04}/{name}-{row.key[:8]}"


def failure(about: dict, outcome: Outcome, server: str, attempts: int) -> dict:
    """Return the record of a task that failed for good. about: from `Work.record`."""
    details = {"details": outcome.details} if outcome.details else {}
    return {**about, "error": outcome.message, "server": server, "attempts": attempts, **details}


def success(about: dict, outcome: Outcome, server: str, attempts: int) -> dict:
    """Return the record of a task that is done. about: from `Work.record`."""
    found = {"files": outcome.files, "seconds": outcome.seconds, "texts": outcome.texts}
    return {**about, **found, "server": server, "attempts": attempts}
