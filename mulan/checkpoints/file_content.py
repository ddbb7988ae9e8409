"""What model files hold, as one short text, without reading them whole."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

CLOCK_RESOLUTION = 2 * 10**9  # nanoseconds, FAT's clock
WHOLE = 2**20  # bytes of a file that are read from its beginning on: names and shapes stand there
SAMPLES, SAMPLE = 64, 2**12  # blocks of the rest, evenly spread, and the bytes of each

Version = tuple[int, ...]  # of a file: device, inode, size, mtime and, where every write moves it, ctime


class FileContent:
    """The content of a model: one file, or all files of a folder.

    It is told by size, time of the last change, the first megabyte and samples of the rest. Where ctime moves with
    every write, and no program can set it back (all but Windows), it belongs to the content: then not one byte can
    change without it. Names do not count.
    """

    def __init__(self, path: Path):
        self._versions: dict[Path, Version] | None = None
        self._digest: str | None = None
        with suppress(OSError):
            files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
            self._versions = {file: _version(file) for file in files}

    def digest(self) -> str | None:
        """Return what changes with the content, the same in every process.

        None where that cannot be told: a file is gone, is another one than when this object was made, or changed so
        short a time ago that a clock may not show the next change.
        """
        known = self._versions or {}
        try:
            if not known or {file: _version(file) for file in known} != known:
                return None
            if self._digest is None and all(map(_is_settled, known.values())):
                digest = hashlib.sha256()
                for file, version in known.items():
                    digest.update(repr(version[2:]).encode())
                    digest.update(_sampled(file, version[2]))
                self._digest = digest.hexdigest()
        except OSError:
            return None
        return self._digest

    def fingerprint(self) -> str | None:
        """Return what changes with sizes and bytes alone, so that it is the same on every machine that has the files.

        None where a file is gone.
        """
        digest = hashlib.sha256()
        try:
            for file in self._versions or ():
                size = file.stat().st_size
                digest.update(f"{size} ".encode())
                digest.update(_sampled(file, size))
        except OSError:
            return None
        return digest.hexdigest() if self._versions else None


def _version(file: Path) -> Version:
    stat = file.stat()
    changed = (stat.st_ctime_ns,) if os.name == "posix" else ()  # elsewhere it is when the file was made
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, *changed


def _is_settled(version: Version) -> bool:
    return time.time_ns() - version[-1] > CLOCK_RESOLUTION


def _sampled(path: Path, size: int) -> bytes:
    """Read the beginning, and samples of the rest; all of it where the samples would hold that."""
    step = (size - WHOLE) // SAMPLES
    with open(path, "rb") as file:
        parts = [file.read(WHOLE if step > SAMPLE else size)]
        for start in range(WHOLE, size, step) if step > SAMPLE else ():
            file.seek(start)
            parts.append(file.read(SAMPLE))
    return b"".join(parts)
