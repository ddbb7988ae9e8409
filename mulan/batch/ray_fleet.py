"""The servers through Ray: an actor per server that talks to it, and, with `--start`, an actor that is the server.

The actors that talk run beside the driver, so files land on its disk. Their classes are local to functions: Ray then
sends them whole, and a worker needs no way to import this pack by name; it is given the pack's folder.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .worker import LOST, Job, Outcome

PACK = Path(__file__).absolute().parents[2]
AT_ONCE = 16  # calls of an actor that run together: its rows, and questions about them
OPEN_WITHIN = 600.0  # seconds for a worker to start and to hear of the nodes: machines may be busy


class NoRayError(RuntimeError):
    """Ray did not start, or its cluster does not answer."""


def start_ray(address: str | None) -> tuple[Any, str]:
    """Connect to a Ray cluster, or begin one on this machine; return the module, and its dashboard's address or "".

    Raises NoRayError.
    """
    import ray

    try:
        return ray, _init(ray, address).dashboard_url or ""
    except Exception as error:  # Ray has no class of its own for this
        busy = "timed out" in str(error)
        hint = " Where other programs keep this machine busy, run the same command again." if busy else ""
        raise NoRayError(f"Ray: {_first_line(error)}{hint}") from error


def _init(ray: Any, address: str | None) -> Any:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        return ray.init(address, **quiet)
    try:
        # Else Ray runs workers, and the ComfyUI in them, at niceness 15: they stand still where other programs are busy
        return ray.init(**quiet, _system_config={"worker_niceness": 0})
    except ValueError:  # RAY_ADDRESS or `ray start` on this machine name a cluster, which has settings of its own
        return ray.init(**quiet)


@dataclass
class RemoteServer:
    """A server by its address, and the headers that its proxy wants."""

    url: str
    headers: Mapping[str, str]
    patience: float = 15.0


class RayFleet:
    """The driver's way to the servers. `await open()` returns each one's nodes, None for those that do not answer."""

    def __init__(self, ray: Any, servers: Sequence[RemoteServer]):
        self._ray, self._servers = ray, servers
        node = ray.get_runtime_context().get_node_id()
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        self._actor_class = ray.remote(num_cpus=0, max_concurrency=AT_ONCE, scheduling_strategy=affinity)(
            _worker_class()
        )
        self._actors: list[Any] = [self._start(server) for server in servers]

    def _start(self, server: RemoteServer) -> Any:
        return self._actor_class.remote(str(PACK), server.url, dict(server.headers), server.patience)

    async def open(self) -> list[dict | str]:
        """Return what each server says of its nodes; a text where it does not answer."""
        return list(await asyncio.gather(*(self._open(index) for index in range(len(self._actors)))))

    async def _open(self, server: int) -> dict | str:
        try:
            return await asyncio.wait_for(_result(self._actors[server].open.remote()), OPEN_WITHIN)
        except asyncio.TimeoutError:
            return f"it did not answer within {OPEN_WITHIN:.0f} s"
        except self._ray.exceptions.RayError as error:
            return f"its worker stopped: {_first_line(error)}"

    async def run(self, server: int, job: Job) -> Outcome:
        try:
            return Outcome(**await _result(self._actors[server].run.remote(vars(job))))
        except self._ray.exceptions.RayError as error:
            return Outcome(LOST, f"its worker stopped: {_first_line(error)}")

    async def take_back(self, server: int, prompt_id: str) -> bool:
        try:
            return await _result(self._actors[server].take_back.remote(prompt_id))
        except self._ray.exceptions.RayError:
            return False

    async def is_up(self, server: int) -> bool:
        actor = self._actors[server]
        try:
            return await asyncio.wait_for(_result(actor.is_up.remote()), OPEN_WITHIN)
        except self._ray.exceptions.RayActorError:
            if self._actors[server] is actor:  # else another driver has started it anew
                self._actors[server] = self._start(self._servers[server])
            return not isinstance(await self._open(server), str)
        except (asyncio.TimeoutError, self._ray.exceptions.RayError):
            return False

    async def stop(self, server: int) -> None:
        try:
            await _result(self._actors[server].stop.remote())
        except self._ray.exceptions.RayError:
            pass

    def close(self) -> None:
        """End the workers; the servers stay."""
        for actor in self._actors:
            self._ray.kill(actor)


async def _result(reference) -> Any:
    """Wait for an actor's answer without holding the loop."""
    return await asyncio.wrap_future(reference.future())


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _worker_class() -> type:
    class BatchWorker:
        """A `Worker` in a process of its own."""

        def __init__(self, pack: str, url: str, headers: dict, patience: float):
            import importlib
            import importlib.util
            import sys

            if "mulan_nodes" not in sys.modules:  # the pack without its nodes, as `convert.py` finds it
                spec = importlib.util.spec_from_file_location(
                    "mulan_nodes", f"{pack}/__init__.py", submodule_search_locations=[pack]
                )
                sys.modules["mulan_nodes"] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
            self._library = importlib.import_module("mulan_nodes.mulan.batch.worker")
            self._worker = None
            self._settings = url, headers, patience

        async def open(self):
            if self._worker is None:
                self._worker = self._library.Worker(*self._settings)
            try:
                return await self._worker.open()
            except (self._library.LostError, self._library.RefusedError) as error:
                return str(error)

        async def run(self, job: dict) -> dict:
            return vars(await self._worker.run(self._library.Job(**job)))  # type: ignore[union-attr]

        async def take_back(self, prompt_id: str) -> bool:
            return await self._worker.take_back(prompt_id)  # type: ignore[union-attr]

        async def is_up(self) -> bool:
            return self._worker is not None and await self._worker.is_up()

        async def stop(self) -> None:
            if self._worker:
                await self._worker.stop()

    return BatchWorker
