"""Files: written whole or not at all under a name of their own, read as text whatever wrote them."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .limits import MAX_JSON_LENGTH

UNFINISHED = ".unfinished"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name to write to; at the end the file replaces `path`, and an error removes it.

    The name is unique, so that two processes can write to one folder. Raises OSError that names `path`.
    """
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{UNFINISHED}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(error.errno, f"{path.name} cannot be written to {path.parent}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON with or without a byte order mark. Raises ValueError, also where it is too long or nested too deep."""
    if len(text) > MAX_JSON_LENGTH:
        raise ValueError(f"it is {len(text)} characters long, and at most {MAX_JSON_LENGTH} are read")
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        return json.loads(text.lstrip("\ufeff"))
    except RecursionError:
        raise ValueError("its lists and objects are nested too deep") from None
