"""Small files of others, read whole: whatever bears their name, and however large it is."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def read_file(path: Path, limit: int) -> bytes | None:
    """Return what a file holds, None where nothing has its name.

    Raises ValueError, which says why, where something else has the name, or it holds more than `limit` bytes.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(str(error.strerror)) from error
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no regular file")
        if status.st_size > limit:
            raise ValueError(f"it has {status.st_size} bytes, and at most {limit} are read")
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError("it is a link to a file that does not exist") from None
    except OSError as error:
        is_loop = error.errno == errno.ELOOP
        raise ValueError("it is a link that leads back to itself" if is_loop else str(error.strerror)) from error
