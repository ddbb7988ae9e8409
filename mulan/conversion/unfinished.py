"""A converted file that is written over several runs: what is finished stays, and the next run goes on behind it.

Beside `NAME.safetensors` lie, until it is complete, `NAME.safetensors.part` and its journal, `.part.log`: a line of
JSON that says what the file is made of, then a line per run of finished tensors. A tensor is in the journal only when
its bytes are on the disk.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..boundary.files import UnwritableError, WholeFile, hold, naming

PART = ".part"
JOURNAL = f"{PART}.log"
SAVE_AFTER = 2**28  # bytes that are written between two entries of the journal


@dataclass
class Journal:
    """What is known of an unfinished file: of what it is made, what of that is finished, what needs bfloat16."""

    key: dict[str, str]
    done: set[str] = field(default_factory=set)
    large: set[str] = field(default_factory=set)


def read_journal(path: Path) -> Journal | None:
    """Return the journal of the file to be `path`; None where nothing was begun. A line cut short is left out."""
    journal = None
    with suppress(OSError):
        for line in (path.parent / f"{path.name}{JOURNAL}").read_text("utf-8", "replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if journal is None:
                journal = Journal(entry)
            else:
                journal.done.update(entry.get("done", ()))
                journal.large.update(entry.get("large", ()))
    return journal


def journals(folders: Iterable[Path]) -> Iterator[Journal]:
    """Yield the journals of the unfinished files in some folders."""
    for folder in folders:
        for path in sorted(folder.glob(f"*{JOURNAL}")):
            journal = read_journal(path.with_name(path.name.removesuffix(JOURNAL)))
            if journal is not None:
                yield journal


class UnfinishedFile(WholeFile):
    """A WholeFile that keeps what was written when something ends the writing early, and goes on with it.

    `key` says of what it is made: what was written of anything else is dropped. `done` and `large` are the journal's.
    Raises UnwritableError, also where another process is writing the same file.
    """

    def __init__(self, target: Path, key: dict[str, str]):
        super().__init__(target)
        self._unfinished = target.with_name(f"{target.name}{PART}")
        self._journal_path = target.with_name(f"{target.name}{JOURNAL}")
        journal = read_journal(target)
        self._continues = journal is not None and journal.key == key and self._unfinished.is_file()
        self._journal = journal if journal is not None and self._continues else Journal(key)
        self._new: list[str] = []
        self._unsaved = 0
        if self._continues:
            found = self._unfinished.stat()
            self.held = getattr(found, "st_blocks", found.st_size // 512) * 512

    @property
    def done(self) -> set[str]:
        return self._journal.done

    @property
    def large(self) -> set[str]:
        return self._journal.large

    def __enter__(self) -> UnfinishedFile:
        with naming(self.path):
            self._file = open(self._unfinished, "r+b" if self._unfinished.exists() else "x+b", buffering=0)
            try:
                self._lock()
                if not self._continues:
                    self._file.truncate(0)
                    self._journal_path.write_text(json.dumps(self._journal.key) + "\n", "utf-8")
            except BaseException:
                self._file.close()
                raise
        return self

    def write(self, data, start: int | None = None) -> None:
        super().write(data, start)
        self._unsaved += len(data)

    def finished(self, name: str) -> None:
        """Note that all of a tensor is written."""
        self.done.add(name)
        self._new.append(name)
        if self._unsaved > SAVE_AFTER:
            self._save()

    def needs_bfloat16(self, name: str) -> None:
        """Note that a tensor does not fit into float16."""
        self.large.add(name)
        self._append({"large": [name]})

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                with naming(self.path):
                    self._finish()
                self._journal_path.unlink(missing_ok=True)
            else:
                self._save()
        finally:
            self._file.close()

    def _save(self) -> None:
        if self._new:
            with naming(self.path):
                os.fsync(self._file.fileno())
            self._append({"done": self._new})
        self._new, self._unsaved = [], 0

    def _append(self, entry: dict[str, list[str]]) -> None:
        with naming(self.path), open(self._journal_path, "a", encoding="utf-8") as journal:
            journal.write(json.dumps(entry) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def _lock(self) -> None:
        if not hold(self._file):
            raise UnwritableError(
                errno.EAGAIN, f"{self.path.name} is being made in {self.path.parent} by another process: wait for it"
            )


def drop(path: Path) -> None:
    """Remove what was written of the file to be `path`."""
    for suffix in (PART, JOURNAL):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
