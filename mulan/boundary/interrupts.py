"""Loops over what a user gave: they stop when Stop is pressed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import comfy.model_management

INTERVAL = 0.1  # seconds between two looks

Item = TypeVar("Item")


def interruptible(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; raise ComfyUI's InterruptProcessingException soon after the user has pressed Stop."""
    last = time.monotonic()
    for item in items:
        now = time.monotonic()
        if now - last > INTERVAL:
            last = now
            comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
