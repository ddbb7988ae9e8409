"""Files appear whole or not at all: several processes in one folder, kills, full and read-only disks."""

from __future__ import annotations

import errno
import io
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.boundary import files
from mulan_nodes.mulan.boundary.files import (
    UNFINISHED,
    UnwritableError,
    WholeFile,
    check_file_name,
    hold,
    locked,
    remove_abandoned,
    write_text,
)
from mulan_nodes.mulan.checkpoints import safetensors_reader
from mulan_nodes.mulan.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from mulan_nodes.mulan.checkpoints.tensor_files import open_tensors
from mulan_nodes.mulan.internvl.embedding_cache import EmbeddingCache

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forked")
FORK = multiprocessing.get_context("fork") if os.name == "posix" else multiprocessing


def start(work: Callable, *arguments) -> multiprocessing.Process:
    """Run `work(*arguments)` in a process of its own."""

    def run():
        files._RUN = uuid.uuid4().hex[:8]  # which a server of its own would have
        work(*arguments)

    process = FORK.Process(target=run)
    process.start()
    return process


def finish(*processes: multiprocessing.Process) -> None:
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def numbered(folder: Path):
    return (folder / f"x_{count:05}_.txt" for count in itertools.count(1))


def refusing(code: int) -> Callable:
    """Return a function that fails as the system does."""

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    return refuse


def leftovers(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if UNFINISHED in file.name]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none"])
def test_processes_that_count_in_one_folder_overwrite_nothing(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(files.os, "link", refusing(errno.EPERM))

    def work(process: int):
        for count in range(100):
            write_text(numbered(tmp_path), f"{process} {count}")

    finish(*[start(work, process) for process in range(3)])
    texts = [file.read_text() for file in sorted(tmp_path.iterdir())]
    assert sorted(texts) == sorted(f"{process} {count}" for process in range(3) for count in range(100))
    assert [file.name for file in sorted(tmp_path.iterdir())] == [f"x_{count:05}_.txt" for count in range(1, 301)]


def test_a_reader_sees_one_file_or_the_other(tmp_path):
    path = tmp_path / "shared.safetensors"

    def work(process: int):
        for count in range(150):
            with SafetensorsWriter(path, {"a": TensorSpec(torch.float32, (20000,))}, {}) as file:
                file.write("a", torch.full((20000,), float(process * 1000 + count)))

    writers, seen = [start(work, process) for process in (1, 2)], set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            values = load_file(path)["a"]
            assert (values == values[0]).all() and len(values) == 20000
            seen.add(values[0].item())
    finish(*writers)
    assert len(seen) > 20 and not leftovers(tmp_path)


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    def living():
        with WholeFile(tmp_path / "other.bin") as file:
            file.write(b"x")
            while not (tmp_path / "next.txt").exists():
                time.sleep(0.02)

    def killed():
        with WholeFile(tmp_path / "big.bin") as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    at_work = start(living)
    while not leftovers(tmp_path):
        assert at_work.is_alive()
        time.sleep(0.02)
    written = leftovers(tmp_path)
    dead = start(killed)
    dead.join(60)
    (left,) = set(leftovers(tmp_path)) - set(written)
    foreign = ["x.unfinished", "x.part", "a.txt.12345678-12345678.unfinished", "lock-12345678-12345678.unfinished"]
    for name in foreign:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    elsewhere = left.replace(files._host(), "0" * 8)
    old = left.replace(files._host(), "1" * 8)
    for name in (elsewhere, old):
        (tmp_path / name).touch()
    os.utime(tmp_path / old, (time.time() - 2 * 24 * 3600,) * 2)
    write_text(tmp_path / "next.txt", "next")
    assert left not in leftovers(tmp_path) and old not in leftovers(tmp_path)
    assert elsewhere in leftovers(tmp_path), "another machine's: it may be at work"
    assert {*foreign, *written} < {file.name for file in tmp_path.iterdir()} and (
        tmp_path / "next.txt"
    ).read_text() == "next"
    finish(at_work)
    assert (tmp_path / "other.bin").read_bytes() == b"x"


def test_an_abandoned_file_is_removed_under_its_lock(tmp_path, monkeypatch):
    """A file that another process has created and not locked yet looks abandoned: it must see that it lost."""
    start_name = f"a.txt.{files._host()}-{'0' * 8}-{'1' * 8}{UNFINISHED}"
    (tmp_path / start_name).touch()
    unlink, locked = os.unlink, []

    def removing(path):
        with open(path, "rb") as file, pytest.raises(BlockingIOError):
            files.fcntl.flock(file, files.fcntl.LOCK_EX | files.fcntl.LOCK_NB)
        locked.append(path)
        unlink(path)

    monkeypatch.setattr(files.os, "unlink", removing)
    remove_abandoned(tmp_path)
    assert [Path(path).name for path in locked] == [start_name] and not leftovers(tmp_path)


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_one_holds_a_file_until_it_is_closed(tmp_path, monkeypatch, system):
    """Windows' own call is stood in for: it locks a byte at the place where the file is."""
    held: set[tuple[int, int]] = set()

    def locking(descriptor, mode, count):
        byte = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        assert (mode, count) == ("at once", 1) and byte[1] >= 2**40
        if byte in held:
            raise PermissionError(13, "Permission denied")
        held.add(byte)

    if system == "nt":
        monkeypatch.setattr(files, "fcntl", None)
        monkeypatch.setattr(files, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK="at once"))
    (tmp_path / "a").write_bytes(b"0123")
    with open(tmp_path / "a", "r+b") as first, open(tmp_path / "a", "r+b") as second:
        first.seek(2)
        assert hold(first) and first.read() == b"23"
        assert not hold(second)
    held.clear()
    with open(tmp_path / "a", "ab") as third:
        assert hold(third)


def test_a_folder_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with open(tmp_path / "a", "ab") as file:
        assert hold(file)


def test_own_files_are_not_abandoned(tmp_path):
    with WholeFile(tmp_path / "a") as first, WholeFile(tmp_path / "b") as second:
        remove_abandoned(tmp_path)
        first.write(b"1")
        second.write(b"2")
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a", "b"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), WholeFile(path) as file:
            file.write(b"new")
            raise error
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_file_that_grows_too_large_is_named_and_goes(tmp_path):
    import resource  # not on Windows, where none of these tests runs

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(UnwritableError) as refused:
            write_text(tmp_path / "big.txt", "x" * 5000)
        assert str(refused.value).startswith(f"big.txt cannot be written to {tmp_path}: it would be larger than")

    finish(start(work))
    assert not list(tmp_path.iterdir())


class SmallDisk:
    """A disk of 100 kB: a mounted one, or where a test may not mount, a folder whose files refuse like one's."""

    size = 100_000

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.read_only = folder, False
        folder.mkdir()
        self._mount = shutil.which("mount")
        made = self._mount and subprocess.run(
            [self._mount, "-t", "tmpfs", "-o", f"size={self.size}", "none", folder], capture_output=True
        )
        self.mounted = bool(made) and made.returncode == 0
        if not self.mounted:
            usage = shutil._ntuple_diskusage(self.size, 0, self.size)
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
            monkeypatch.setattr(files, "open", self._open, raising=False)

    def make_read_only(self) -> None:
        self.read_only = True
        if self.mounted:
            subprocess.run([self._mount, "-o", "remount,ro", self.folder], check=True)

    def unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", self.folder], check=True)  # noqa: S607

    def _open(self, path, mode, **options):
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return SmallDiskFile(path, mode.replace("b", ""))


class SmallDiskFile(io.FileIO):
    def write(self, data) -> int:
        room = SmallDisk.size - self.tell()
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(memoryview(data)[:room])


@pytest.fixture(params=["mounted where allowed", "stands in"])
def small_disk(request, tmp_path, monkeypatch):
    if request.param == "stands in":
        monkeypatch.setattr(shutil, "which", lambda _: None)
    disk = SmallDisk(tmp_path / "disk", monkeypatch)
    yield disk
    disk.unmount()


def test_a_full_disk_is_named_and_nothing_stays(small_disk, monkeypatch):
    folder = small_disk.folder
    with pytest.raises(UnwritableError) as refused:
        write_text(numbered(folder), "x" * 200_000)
    assert str(refused.value) == (f"x_00001_.txt cannot be written to {folder}: the disk is full. Make room on it")
    assert refused.value.errno == errno.ENOSPC
    spec = {"a": TensorSpec(torch.uint8, (200_000,))}
    with pytest.raises(UnwritableError, match=r"a.safetensors takes .* but the disk of .*: make room"):
        SafetensorsWriter(folder / "a.safetensors", spec, {}).__enter__()
    monkeypatch.setattr("mulan_nodes.mulan.checkpoints.safetensors_writer.check_disk_space", lambda *_: None)
    with (
        pytest.raises(UnwritableError, match=r"a\.safetensors cannot be written to .*: the disk is full"),
        SafetensorsWriter(folder / "a.safetensors", spec, {}) as file,
    ):
        file.write("a", torch.ones(200_000, dtype=torch.uint8))
    assert not list(folder.iterdir())


def test_a_read_only_folder_is_named(small_disk):
    folder = small_disk.folder
    write_text(folder / "a.txt", "old")
    small_disk.make_read_only()
    with pytest.raises(UnwritableError, match=r"a\.txt cannot be written to .*disk: the folder is read-only\. Make"):
        write_text(folder / "a.txt", "new")
    assert [file.read_text() for file in folder.iterdir()] == ["old"]


@pytest.mark.parametrize(
    "code, words",
    [
        (errno.EROFS, "the folder is read-only"),
        (errno.EACCES, "no permission to write there"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_what_the_system_refuses_is_said_in_words(code, words, tmp_path, monkeypatch):
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(files.os, step, refusing(code))
            with pytest.raises(UnwritableError, match=f"a.txt cannot be written to .*: .*{words}"):
                write_text(tmp_path / "a.txt", "x")
        assert not list(tmp_path.iterdir())


def test_folders_that_are_none_and_names_that_are_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match="a part of the folder's path is a file"):
        write_text(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(UnwritableError, match="No such file"):
        write_text(tmp_path / "gone" / "a.txt", "x")
    with pytest.raises(UnwritableError, match="the name is too long"):
        write_text(tmp_path / ("a" * 300), "x")
    write_text(tmp_path / ("猫" * 80), "x")  # 240 bytes: its unfinished file has a name, too
    assert not leftovers(tmp_path)
    for name, words in (
        ("a" * 256, "256 bytes long, and at most 255"),
        ("猫" * 90 + "/a", "270 bytes"),
        ("half \ud83d", "characters that this system's file names cannot hold"),
        ("a\0b", r"cannot contain '\\x00'"),
        ("a\nb", r"cannot contain '\\n'"),
    ):
        with pytest.raises(ValueError, match=words):
            check_file_name(name)
    check_file_name("猫 🐈/%date%")


def test_windows_reserves_more_characters(monkeypatch):
    check_file_name("a: b?")
    monkeypatch.setattr(files, "WINDOWS", True)
    with pytest.raises(ValueError, match="cannot contain ':'"):
        check_file_name("a: b?")


# --- locks and shared caches ---


def test_a_lock_keeps_others_out_until_it_is_old(tmp_path):
    path = tmp_path / "cache"
    with locked(path) as first:
        with locked(path, wait=0.1) as second, locked(tmp_path / "another", wait=0) as third:
            assert (first, second, third) == (True, False, True)
        (lock,) = tmp_path.iterdir()
        os.utime(lock, (time.time() - 60,) * 2)
        with locked(path, wait=0) as heir:
            assert heir
    assert not list(tmp_path.iterdir())


def vector(number: int) -> torch.Tensor:
    return torch.full((8,), float(number))


def test_two_caches_of_one_folder_add_to_each_other(tmp_path):
    path = tmp_path / "folder.safetensors"
    first, second = EmbeddingCache(path, "me"), EmbeddingCache(path, "me")
    first["a"] = vector(1)
    second["b"] = vector(2)
    first.save()
    second.save()
    both = EmbeddingCache(path, "me")
    assert torch.equal(both["a"], vector(1)) and torch.equal(both["b"], vector(2))
    first.keep_only({Path("b.png"): "b"})  # a's file is gone
    first["c"] = vector(3)
    first.save()
    left = EmbeddingCache(path, "me")
    assert "a" not in left and "b" in left and torch.equal(left["c"], vector(3))


@pytest.mark.parametrize("rows", [3, 300])  # whose header is as long as the other's, or longer
def test_a_file_that_is_replaced_while_it_is_opened_is_opened_again(tmp_path, monkeypatch, rows):
    path, new = tmp_path / "a.safetensors", tmp_path / "new.safetensors"
    save_file({"a": torch.zeros(2, 4), "b": torch.zeros(2)}, path)
    save_file({"a": torch.ones(rows, 4), "b": torch.ones(2)}, new)

    def replacing(*arguments, **options):
        header = path.read_bytes()
        if new.exists():
            os.replace(new, path)
            torn = tmp_path / "torn.safetensors"  # the old header, and the new values behind it
            torn.write_bytes(header[:-40] + b"\xff" * 40)
            return safe_open(torn, *arguments[1:], **options)
        return safe_open(*arguments, **options)

    monkeypatch.setattr(safetensors_reader, "safe_open", replacing)
    file = open_tensors(path)
    assert file.shapes["a"] == (rows, 4) and torch.equal(file.read("a"), torch.ones(rows, 4))


def test_processes_that_store_into_one_cache_lose_nothing(tmp_path):
    def work(process: int):
        for count in range(40):
            cache = EmbeddingCache(tmp_path / "folder.safetensors", "me")
            assert all((cache[key] == float(key)).all() for key in cache._vectors), "a torn file"
            cache[str(process * 1000 + count)] = vector(process * 1000 + count)
            cache.save()
            assert not cache._changed, "it could not be stored"

    finish(*[start(work, process) for process in range(3)])
    stored = EmbeddingCache(tmp_path / "folder.safetensors", "me")
    for key in (process * 1000 + count for process in range(3) for count in range(40)):
        assert torch.equal(stored[str(key)], vector(key))
    assert [file.name for file in tmp_path.iterdir()] == ["folder.safetensors"]
