"""Files: written whole or not at all, read as text whatever wrote them; several servers may share a folder.

Every file is written under a name of its own in the same folder and gets its real name when all of it is on disk, so a
reader sees the old file or the new one, and writers never meet. What a killed process leaves is removed by the next
one that writes to the folder: where the process ran on this machine, as soon as nobody holds its lock on it; where
that cannot be known (another machine, Windows), after a day. Only names that this module makes are ever removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import reprlib
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .interrupts import interruptible
from .limits import MAX_FILE_NAME, MAX_JSON_LENGTH

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed anyway
    fcntl = None
try:
    import msvcrt  # pyright: ignore[reportMissingModuleSource]
except ImportError:  # all other systems
    msvcrt = None

UNFINISHED = ".unfinished"
WINDOWS = os.name == "nt"

_READABLE = 40  # characters of a file's name in the name of its unfinished file: a long name stays within the limit
_RUN = uuid.uuid4().hex[:8]  # in the names of this process's unfinished files
_OURS = re.compile(rf"\.(lock|[0-9a-f]{{8}})-([0-9a-f]{{8}})-[0-9a-f]{{8}}{re.escape(UNFINISHED)}$")
_NO_NAME, _NO_WINDOWS_NAME = re.compile(r"[\x00-\x1f\x7f]"), re.compile(r'[\x00-\x1f\x7f<>:"|?*]')
_DAY = 24 * 60 * 60.0
_FAR = 2**40  # the byte that Windows locks: behind all that is read or written, for there a lock forbids both
_HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_STALE = 30.0  # seconds after which a lock counts as left by a killed process: they are held for one small file

_REASONS = {
    errno.ENOSPC: "the disk is full. Make room on it",
    errno.EDQUOT: "the disk quota is used up. Make room",
    errno.EFBIG: "it would be larger than the system allows",
    errno.EEXIST: "there is a file of the folder's name. Name another folder",
    errno.EROFS: "the folder is read-only. Make it writable",
    errno.EACCES: "ComfyUI has no permission to write there. Change the folder's permissions",
    errno.EPERM: "ComfyUI has no permission to write there. Change the folder's permissions",
    errno.ENAMETOOLONG: "the name is too long. Shorten it",
    errno.ENOTDIR: "a part of the folder's path is a file. Name another folder",
}


class UnwritableError(OSError):
    """The system refuses to write a file; the message names it and its folder, and says what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


class WholeFile:
    """A file to write, as a context manager; an error on the way removes it.

    `target` is replaced at the end. Where it is an iterator of paths, the first free one is taken then, and no file is
    replaced, whoever else writes there. `path` is the file's path, after the end the real one. Raises UnwritableError.
    """

    held = 0  # bytes that are on the disk before anything is written

    def __init__(self, target: Path | Iterator[Path]):
        self._next = None if isinstance(target, Path) else target
        self.path = target if isinstance(target, Path) else next(target)

    def __enter__(self) -> WholeFile:
        with naming(self.path):
            remove_abandoned(self.path.parent)
            self._unfinished, self._file = _create(self.path)
        return self

    def write(self, data, start: int | None = None) -> None:
        """Write bytes, at the offset `start` or behind the last ones."""
        with naming(self.path):
            if start is not None:
                self._file.seek(start)
            rest = memoryview(data)
            while rest.nbytes:
                rest = rest[self._file.write(rest) :]

    def truncate(self, size: int) -> None:
        """Make the file so many bytes long."""
        with naming(self.path):
            self._file.truncate(size)

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                with naming(self.path):
                    self._finish()
        finally:
            self._file.close()
            self._unfinished.unlink(missing_ok=True)

    def _finish(self) -> None:
        os.fsync(self._file.fileno())
        if fcntl is None:
            self._file.close()  # Windows cannot rename an open file; elsewhere the lock is kept until the end
        if self._next is None:
            os.replace(self._unfinished, self.path)
        else:
            while not _take_free_name(self._unfinished, self.path):
                self.path = next(self._next)
        _sync_folder(self.path.parent)


def write_text(target: Path | Iterator[Path], text: str) -> Path:
    """Write a text file in UTF-8; see WholeFile. Returns its path."""
    with WholeFile(target) as file:
        file.write(text.encode())
    return file.path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise UnwritableError, which names `path`, in place of the system's errors."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
        raise UnwritableError(error.errno, f"{path.name} cannot be written to {path.parent}: {reason}") from error


@contextmanager
def locked(path: Path, wait: float = _STALE) -> Iterator[bool]:
    """Keep other processes out that lock the same path; yield False where one still holds it after `wait` seconds.

    Works between machines too. A lock older than 30 seconds is taken over: whoever relies on it must survive that.
    """
    digest = hashlib.sha256(path.name.encode("utf-8", "surrogateescape")).hexdigest()
    lock = path.with_name(f"{path.name[:_READABLE]}.lock-{digest[:8]}-{digest[8:16]}{UNFINISHED}")
    held = _create_lock(lock, wait)
    try:
        yield held
    finally:
        if held:
            lock.unlink(missing_ok=True)


def hold(file: IO[Any]) -> bool:
    """Keep other processes from holding the same open file until it is closed or this process ends.

    Returns False where another has it. In a folder without locks, as some in networks are, everyone may hold it.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            position = os.lseek(file.fileno(), 0, os.SEEK_CUR)
            os.lseek(file.fileno(), _FAR, os.SEEK_SET)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
            finally:
                os.lseek(file.fileno(), position, os.SEEK_SET)
    except OSError as error:
        return error.errno not in _HELD
    return True


def check_file_name(path: str) -> None:
    """Raise ValueError where no system, or not this one, has a file of this name; folders may stand before it."""
    try:
        longest = max(len(os.fsencode(part)) for part in Path(path).parts)
    except UnicodeEncodeError:
        raise ValueError(f"{reprlib.repr(path)} has characters that this system's file names cannot hold") from None
    bad = (_NO_WINDOWS_NAME if WINDOWS else _NO_NAME).search(os.path.splitdrive(path)[1])
    if bad:
        raise ValueError(f"a file name cannot contain {bad[0]!r}. Remove it")
    if longest > MAX_FILE_NAME:
        raise ValueError(f"the file name would be {longest} bytes long, and at most {MAX_FILE_NAME} are possible")


def remove_abandoned(folder: Path) -> None:
    """Remove the unfinished files and locks that killed processes left in a folder."""
    host = _host()
    for entry in os.scandir(folder):
        ours = _OURS.search(entry.name) if entry.name.endswith(UNFINISHED) else None
        if ours is None or ours[2] == _RUN:
            continue
        with suppress(OSError):  # another process removes it, or it is not ours to remove
            if time.time() - entry.stat().st_mtime > _DAY:
                os.unlink(entry.path)
            elif ours[1] == host:
                _remove_if_unlocked(entry.path)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in interruptible(iter(lambda: file.read(2**20), b"")):
            digest.update(block)
    return digest.hexdigest()


def parse_json(text: str | bytes) -> Any:
    """Parse JSON with or without a byte order mark, bytes in any of JSON's encodings.

    Raises ValueError, also where it is too long or nested too deep.
    """
    if len(text) > MAX_JSON_LENGTH:
        raise ValueError(f"it is {len(text)} characters long, and at most {MAX_JSON_LENGTH} are read")
    if isinstance(text, bytes):
        try:
            text = text.decode(json.detect_encoding(text))
        except UnicodeDecodeError:
            raise ValueError("it is not text in UTF-8") from None
    try:
        return json.loads(text.lstrip("\ufeff"))
    except RecursionError:
        raise ValueError("its lists and objects are nested too deep") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's own limit
        raise ValueError("a number in it has too many digits") from None


def _create(path: Path):
    """Create the unfinished file for `path`, locked where the system can; return its path and the open file."""
    while True:
        name = f"{path.name[:_READABLE]}.{_host()}-{_RUN}-{uuid.uuid4().hex[:8]}{UNFINISHED}"
        unfinished = path.with_name(name)
        file = open(unfinished, "xb", buffering=0)
        if fcntl is None:
            return unfinished, file
        with suppress(OSError):  # some network folders have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return unfinished, file
        file.close()  # removed before it was locked


def _remove_if_unlocked(path: str) -> None:
    """Remove an unfinished file of this machine whose process is gone; raise OSError where it is locked.

    The lock is held until the name is gone: a process between creating the file and locking it then sees that it lost.
    """
    if fcntl is None:
        return
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)


def _take_free_name(unfinished: Path, path: Path) -> bool:
    """Give an unfinished file the name `path`; return False where another file has it."""
    try:
        os.link(unfinished, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, such as FAT
        with locked(path, wait=0) as held:
            if not held or path.exists():
                return False
            os.replace(unfinished, path)
            return True


def _create_lock(lock: Path, wait: float) -> bool:
    deadline = time.monotonic() + wait
    while True:
        with suppress(FileExistsError):
            open(lock, "xb").close()
            return True
        with suppress(OSError):
            if time.time() - lock.stat().st_mtime > _STALE:
                lock.unlink()
                continue
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)


def _host() -> str:
    return hashlib.sha256(platform.node().encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut; systems that cannot open folders do not need it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network folders refuse it, and the file is there
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
