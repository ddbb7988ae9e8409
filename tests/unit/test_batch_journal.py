"""The journal and the manifest: what a kill at any moment leaves is read again, whole and once."""

from __future__ import annotations

import json
import os

import pyarrow.parquet
import pytest

from mulan_nodes.mulan.batch import journal as journal_module
from mulan_nodes.mulan.batch.journal import DONE, FAILED, FAILURE, JOURNAL, MANIFEST, PARQUET, InUseError, Journal


def record(number: int, **more) -> dict:
    return {
        "key": f"k{number}",
        "id": f"row {number}",
        "line": number,
        "language": "ru",
        "columns": {"prompt": "звезда"},
        "files": [],
        "server": "http://a",
        "seconds": 1.5,
        "attempts": 1,
        "texts": {},
        **more,
    }


def test_a_journal_is_read_again(tmp_path):
    with Journal(tmp_path) as journal:
        for number in (3, 1, 2):
            journal.note_sent(f"k{number}", "http://a", 0)
            journal.add(DONE, record(number))
        journal.add(FAILURE, record(9, error="bad"))
        journal.note_sent("k7", "http://b", 2)
        journal.sync()
    with Journal(tmp_path) as journal:
        assert [each["id"] for each in journal.records()] == ["row 1", "row 2", "row 3"]
        assert list(journal.records({"k2"})) == [record(2)]
        assert set(journal.failed) == {"k9"}
        assert journal.sent == {"k7": ("http://b", 2)} and journal.dropped == 0


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_line_is_dropped_and_the_next_one_stands_alone(tmp_path, cut):
    with Journal(tmp_path) as journal:
        journal.add(DONE, record(1))
        journal.add(DONE, record(2))
    file = tmp_path / JOURNAL
    file.write_bytes(file.read_bytes()[:-cut])
    with Journal(tmp_path) as journal:
        assert set(journal.done) == {"k1"} and journal.dropped == 1
        journal.add(DONE, record(3))
    with Journal(tmp_path) as journal:
        assert set(journal.done) == {"k1", "k3"} and journal.dropped == 0


def test_folding_keeps_all_and_begins_an_empty_journal(tmp_path):
    with Journal(tmp_path) as journal:
        for number in (3, 1, 2):
            journal.add(DONE, record(number))
        for number in (8, 9):
            journal.add(FAILURE, record(number, error="bad"))
        journal.note_sent("k7", "http://b", 0)
        journal.fold({"k1", "k3"}, [record(5, key="", error="its cell is empty")])
        assert [json.loads(line)["line"] for line in (tmp_path / FAILED).read_text().splitlines()] == [5]
        journal.add(DONE, record(4))
        journal.fold({"k1", "k3", "k4", "k9"})
        assert [each["line"] for each in journal.records()] == [1, 2, 3, 4]
    with Journal(tmp_path) as journal:
        assert set(journal.done) == {"k1", "k2", "k3", "k4"} and set(journal.failed) == {"k8", "k9"}
        assert journal.sent == {"k7": ("http://b", 0)}
    table = pyarrow.parquet.read_table(tmp_path / PARQUET).to_pylist()
    assert [row["id"] for row in table] == ["row 1", "row 3", "row 4"]
    assert json.loads(table[0]["columns"]) == {"prompt": "звезда"}
    assert [json.loads(line)["line"] for line in (tmp_path / FAILED).read_text().splitlines()] == [9]


class Killed(BaseException):
    pass


def test_a_kill_between_any_two_steps_of_folding_loses_nothing(tmp_path, monkeypatch):
    """The process ends at each place where a file gets its name; the next one has all rows, once."""
    real, step = os.replace, 0
    while True:
        folder, count = tmp_path / str(step), iter(range(100))
        with Journal(folder) as journal:
            for number in range(5):
                journal.add(DONE, record(number))
            journal.fold()
            for number in range(5, 9):
                journal.add(DONE, record(number))

            def replace(*paths, count=count, step=step):
                if next(count) == step:
                    raise Killed
                real(*paths)

            monkeypatch.setattr(journal_module.os, "replace", replace)
            try:
                journal.fold()
                ended = True
            except Killed:
                ended = False
            monkeypatch.setattr(journal_module.os, "replace", real)
        with Journal(folder) as journal:
            assert [each["line"] for each in journal.records()] == list(range(9)), f"step {step}"
            journal.fold()
        lines = [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]
        assert [line["line"] for line in lines] == list(range(9))
        if ended:
            break
        step += 1
    assert step == 4  # parquet, manifest, failures, journal


def test_rows_without_their_files_run_again(tmp_path):
    with Journal(tmp_path) as journal:
        for number in range(3):
            (tmp_path / f"{number}.png").write_bytes(b"image")
            journal.add(DONE, record(number, files=[{"name": f"{number}.png", "node": "8", "sha256": "", "bytes": 5}]))
        (tmp_path / "0.png").unlink()
        (tmp_path / "1.png").write_bytes(b"ima")
        assert journal.drop_missing() == 2 and set(journal.done) == {"k2"}


def test_a_full_disk_leaves_no_half_line(tmp_path):
    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            self.file.write(bytes(data)[:10])
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    with Journal(tmp_path) as journal:
        journal.add(DONE, record(1))
        journal._file = Full(journal._file)
        with pytest.raises(OSError, match="the disk is full"):
            journal.add(DONE, record(2))
    with Journal(tmp_path) as journal:
        assert set(journal.done) == {"k1"} and journal.dropped == 0


def test_two_runs_do_not_share_a_folder(tmp_path):
    with Journal(tmp_path), pytest.raises(InUseError, match="another run"):
        Journal(tmp_path).__enter__()


def test_a_disk_that_takes_a_part_at_a_time_gets_whole_lines(tmp_path):
    class Slow:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(bytes(data)[:10])

        def __getattr__(self, name):
            return getattr(self.file, name)

    with Journal(tmp_path) as journal:
        journal._file = Slow(journal._file)
        journal.add(DONE, record(1))
    with Journal(tmp_path) as journal:
        assert list(journal.records()) == [record(1)] and journal.dropped == 0


def test_folding_is_due_when_the_journal_is_long_and_longer_than_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "FOLD_EVERY", 2)
    with Journal(tmp_path) as journal:
        journal.add(FAILURE, record(1))
        assert not journal.is_long
        journal.add(FAILURE, record(2))
        assert journal.is_long
        for number in range(3, 8):
            journal.add(DONE, record(number))
        journal.fold()
        for number in range(8, 12):
            journal.add(FAILURE, record(number))
            assert not journal.is_long
    with Journal(tmp_path) as journal:  # five rows of the manifest, and six failures
        assert journal.is_long
