"""What is done, on disk: a journal that grows line by line, and the manifest it is folded into.

manifest.jsonl and manifest.parquet are written whole or not at all; journal.jsonl has what came since, and what is
under way. A line that a kill or a full disk cut off at the journal's end is dropped when it is opened. A row that is in
both counts once: folding can stop anywhere and begin again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..boundary.files import WholeFile, hold, naming, parse_json
from .manifest_table import write_parquet

JOURNAL, MANIFEST, PARQUET, FAILED = "journal.jsonl", "manifest.jsonl", "manifest.parquet", "failed.jsonl"
LOCK = "journal.lock"
FOLD_EVERY = 2000  # lines of the journal
DONE, OTHER, SENT, FAILURE = "done", "other", "sent", "failed"


class InUseError(RuntimeError):
    """Another run writes to the folder."""


class _Place(NamedTuple):
    """Where the record of a row is: its line in the table, which file of the journal, at which byte."""

    line: int
    source: str
    offset: int


class Journal:
    """The results in a folder, by key. `with Journal(folder) as journal`: one process at a time.

    A record is JSON: key, id, line, language, columns, files (name, node, sha256, bytes), server, seconds, texts.
    Those of rows that are done stay on disk, so memory does not grow with results.

    done: keys of rows that are done. failed: key -> record.
    sent: key -> (server, attempt) of what was under way when the last run ended.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.done: dict[str, _Place] = {}
        self.failed: dict[str, dict] = {}
        self.sent: dict[str, tuple[str, int]] = {}
        self.dropped = 0  # lines that could not be read
        self._lines = 0  # of the journal since it was folded

    def __enter__(self) -> Journal:
        with naming(self.folder / JOURNAL):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / LOCK, "ab")
        try:
            self._hold()
            self._read()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._lock.close()

    def note_sent(self, key: str, server: str, attempt: int) -> None:
        """Note that a server is about to get a row; survives the end of this process, not a power cut."""
        self.sent[key] = server, attempt
        self._write({"kind": SENT, "key": key, "server": server, "attempt": attempt})

    def add(self, kind: str, record: dict) -> None:
        """Add a record of what ended; `sync` puts it on the disk."""
        place = self._write({"kind": kind, **record})
        self._remember(kind, record, place)

    def sync(self) -> None:
        """Put what was added on the disk."""
        with naming(self.folder / JOURNAL):
            os.fsync(self._file.fileno())

    @property
    def is_long(self) -> bool:
        """Whether `fold` is due."""
        return self._lines >= max(FOLD_EVERY, len(self.done))

    def forget_failures(self) -> None:
        """Let rows that failed run again."""
        self.failed.clear()

    def records(self, keys: Container[str] | None = None) -> Iterator[dict]:
        """Yield the records of rows that are done, or of `keys` among them, in the order of the table."""
        places = sorted((place, key) for key, place in self.done.items() if keys is None or key in keys)
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {}
            for place, _ in places:
                if place.source not in files:
                    files[place.source] = stack.enter_context(open(self.folder / place.source, "rb"))
                yield _record(files[place.source], place)

    def record(self, key: str) -> dict:
        """Return the record of a row that is done."""
        place = self.done[key]
        with open(self.folder / place.source, "rb") as file:
            return _record(file, place)

    def drop_missing(self) -> int:
        """Let rows run again whose files are not on disk in full; return how many."""
        missing = [record["key"] for record in self.records() if not self._has_files(record)]
        for key in missing:
            del self.done[key]
        return len(missing)

    def fold(self, keys: Container[str] | None = None, bad: Sequence[dict] = ()) -> None:
        """Write manifest and failures anew, and begin an empty journal.

        keys: those that the table has today; others stay in manifest.jsonl, or the journal, for a table that has them
        again. bad: records of rows that never ran.
        """
        write_parquet(self.folder / PARQUET, self.records(keys))
        with WholeFile(self.folder / MANIFEST) as file:
            places, offset = {}, 0
            for record in self.records():
                kind = DONE if keys is None or record["key"] in keys else OTHER
                data = _line({"kind": kind, **record})
                file.write(data)
                places[record["key"]] = _Place(record["line"], MANIFEST, offset)
                offset += len(data)
        failed = [record for key, record in self.failed.items() if keys is None or key in keys]
        failures = sorted([*failed, *bad], key=lambda record: record.get("line", 0))
        with WholeFile(self.folder / FAILED) as file:
            for record in failures:
                file.write(_line(record))
        kept = [{"kind": SENT, "key": key, "server": of[0], "attempt": of[1]} for key, of in self.sent.items()]
        kept += [{"kind": FAILURE, **record} for record in self.failed.values()]
        self.done = places  # the manifest has them all; the journal goes
        self._file.close()
        try:
            with WholeFile(self.folder / JOURNAL) as file:
                for record in kept:
                    file.write(_line(record))
        finally:
            self._open()
        self._lines = 0

    # --- within

    def _hold(self) -> None:
        if not hold(self._lock):
            raise InUseError(f"another run writes to {self.folder}. Wait for its end, or name another folder.")

    def _read(self) -> None:
        for name in (MANIFEST, JOURNAL):
            for record, offset in self._lines_of(self.folder / name):
                kind = record.pop("kind", None)
                if kind == SENT:
                    self.sent[record["key"]] = record["server"], record["attempt"]
                else:
                    place = _Place(record.get("line", 0), name, offset)
                    self._remember(DONE if kind == OTHER else kind, record, place)
        self._cut_torn_line()
        self._open()

    def _lines_of(self, path: Path) -> Iterator[tuple[dict, int]]:
        """Yield the records of a file, and where each begins."""
        if not path.is_file():
            return
        offset = 0
        with open(path, "rb") as file:
            for line in file:
                begin, offset = offset, offset + len(line)
                self._lines += path.name == JOURNAL
                try:
                    if not line.endswith(b"\n"):
                        raise ValueError("cut off")
                    record = parse_json(line)
                    if not isinstance(record, dict) or not isinstance(record.get("key"), str):
                        raise ValueError("no record")
                except ValueError:
                    self.dropped += 1
                    continue
                yield record, begin

    def _cut_torn_line(self) -> None:
        """Remove what a kill left behind the last line break, so that the next line stands alone."""
        path = self.folder / JOURNAL
        if not path.is_file():
            return
        with naming(path), open(path, "r+b") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - 2**16)
                file.seek(start)
                last = file.read(end - start).rfind(b"\n")
                end = start + last + 1 if last >= 0 else start
                if last >= 0:
                    break
            if end < size:
                file.truncate(end)

    def _open(self) -> None:
        with naming(self.folder / JOURNAL):
            self._file = open(self.folder / JOURNAL, "ab", buffering=0)

    def _remember(self, kind: str | None, record: dict, place: _Place) -> None:
        key = record["key"]
        if kind == DONE:
            self.done[key] = place
        elif kind == FAILURE:
            self.failed[key] = record
        else:
            return
        self.sent.pop(key, None)
        if kind != FAILURE:
            self.failed.pop(key, None)

    def _write(self, record: dict) -> _Place:
        data = _line(record)
        with naming(self.folder / JOURNAL):
            start = self._file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(data)
                while rest.nbytes:  # a full disk takes a part
                    rest = rest[self._file.write(rest) :]
            except OSError:
                with suppress(OSError):  # else the next line would be glued to this part
                    self._file.truncate(start)
                raise
        self._lines += 1
        return _Place(record.get("line", 0), JOURNAL, start)

    def _has_files(self, record: dict) -> bool:
        paths = [(self.folder / file["name"], file["bytes"]) for file in record["files"]]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _record(file: BinaryIO, place: _Place) -> dict:
    file.seek(place.offset)
    record = parse_json(file.readline())
    del record["kind"]
    return record


def _line(record: dict) -> bytes:
    return (json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
