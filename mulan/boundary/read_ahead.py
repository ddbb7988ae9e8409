"""What is read or prepared in a thread of its own, ahead of whoever uses it, who can stop at any time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

DEPTH = 2**11  # items that wait: 128 MiB of network reads
LOOK = 0.1  # seconds between two looks whether the user has stopped

Item = TypeVar("Item")


def read_ahead(
    produce: Callable[[threading.Event], Iterator[Item]], idle: Callable[[], None], depth: int = DEPTH
) -> Generator[Item, None, None]:
    """Yield what `produce` yields in a thread of its own, up to `depth` items ahead; call `idle` while waiting.

    When the caller ends early, or `idle` raises, the event that `produce` was given is set.
    """
    items: queue.Queue[tuple[str, Any]] = queue.Queue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def run() -> None:
        try:
            produced = produce(stopped)
            while not stopped.is_set():
                if room.acquire(timeout=LOOK):
                    items.put(("item", next(produced)))
        except StopIteration:
            items.put(("end", None))
        except BaseException as error:  # noqa: BLE001  raised again where it is waited for
            items.put(("error", error))

    threading.Thread(target=run, daemon=True, name="read ahead").start()
    try:
        while True:
            try:
                kind, item = items.get(timeout=LOOK)
            except queue.Empty:
                idle()
                continue
            if kind == "item":
                room.release()
                yield item
            elif kind == "error":
                raise item
            else:
                return
    finally:
        stopped.set()
