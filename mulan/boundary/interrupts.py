"""Loops over what a user gave: they stop when Stop is pressed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

INTERVAL = 0.1  # seconds between two looks

Item = TypeVar("Item")

_uninterrupted = ContextVar("uninterrupted", default=False)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let loops run to their end: Stop is meant for another prompt, which runs while this one is validated.

    Whoever looks at ComfyUI's flag takes it away from the prompt that should stop.
    """
    token = _uninterrupted.set(True)
    try:
        yield
    finally:
        _uninterrupted.reset(token)


def interruptible(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; raise ComfyUI's InterruptProcessingException soon after the user has pressed Stop."""
    last = time.monotonic()
    for item in items:
        now = time.monotonic()
        if now - last > INTERVAL:
            last = now
            if not _uninterrupted.get():
                from comfy import model_management  # which chooses the device: commands do so first

                model_management.throw_exception_if_processing_interrupted()
        yield item
