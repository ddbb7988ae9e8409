"""What a server's history says of a graph that has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_KEPT = ("node_id", "node_type", "exception_type", "exception_message", "traceback")


@dataclass(frozen=True)
class Failure:
    """Why a graph did not come to its end; details: what the server says of an error."""

    message: str
    was_stopped: bool = False
    details: dict[str, Any] = field(default_factory=dict)


def succeeded(entry: Mapping) -> bool:
    """Return whether a graph came to its end."""
    return (entry.get("status") or {}).get("status_str") == "success"


def failure_of(entry: Mapping) -> Failure:
    """Return why a graph did not succeed."""
    for name, data in (entry.get("status") or {}).get("messages") or ():
        if name == "execution_error":
            message = str(data.get("exception_message", "")).strip()
            where = f"node {data.get('node_id')} ({data.get('node_type')})"
            details = {name: data.get(name) for name in _KEPT}
            return Failure(f"{where}: {data.get('exception_type')}: {message}", details=details)
        if name == "execution_interrupted":
            return Failure("it was interrupted on the server", was_stopped=True)
    return Failure("the server says that it failed, and not why")
