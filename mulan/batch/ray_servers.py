"""ComfyUI itself as Ray actors: one for each GPU that Ray gives, begun anew where it ends.

The actor's process becomes ComfyUI: main.py runs in it, with a command line of its own. Ray shows each process its own
GPU, on whichever machine of the cluster that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PLACED_WITHIN = 600.0  # seconds: machines may be busy


class NoServersError(RuntimeError):
    """Servers could not be started."""


class StartedServers:
    """`with StartedServers(ray, comfyui, 2, cpu=False, arguments=[]) as servers: servers.urls`.

    comfyui: ComfyUI's folder, the same on every machine. arguments: more for ComfyUI's command line. folder: where each
    server keeps input, output, temp and user files.
    """

    def __init__(
        self, ray: Any, comfyui: Path, count: int, cpu: bool, arguments: Sequence[str], folder: Path | None = None
    ):
        self._ray, self._count, self._cpu = ray, count, cpu
        self._options = ["--cpu"] * cpu + ["--disable-auto-launch", "--database-url", "sqlite:///:memory:", *arguments]
        self._comfyui, self._folder = comfyui, folder
        self._actors: list[Any] = []
        self.urls: list[str] = []

    def __enter__(self) -> StartedServers:
        gpus = 0 if self._cpu else 1
        there = self._ray.cluster_resources().get("GPU", 0)
        if gpus and there < self._count:
            raise NoServersError(
                f"--start {self._count} needs as many GPUs, and Ray has {there:.0f}. Start fewer, or add --cpu."
            )
        # Restarted without end: the method that is the server is called again in the new process
        actor_class = self._ray.remote(num_cpus=1 if gpus else 0, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(
            _comfyui_class()
        )
        ports = _free_ports(self._count)
        for index, port in enumerate(ports):
            options = list(self._options)
            for name in ("input", "output", "temp", "user") if self._folder else ():
                options += [f"--{name}-directory", f"{self._folder}/{index}/{name}"]
            self._actors.append(actor_class.remote(str(self._comfyui), port, options, len(self._ray.nodes()) == 1))
        try:
            hosts = self._ray.get([actor.host.remote() for actor in self._actors], timeout=PLACED_WITHIN)
        except self._ray.exceptions.RayError as error:
            self.close()
            raise NoServersError(f"Ray could not start ComfyUI: {error}") from error
        self.urls = [f"http://{host}:{port}" for host, port in zip(hosts, ports, strict=True)]
        self._runs = [actor.serve.remote() for actor in self._actors]
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def check(self) -> None:
        """Raise NoServersError where a server ended for good, such as for a wrong command line."""
        ended, _ = self._ray.wait(self._runs, num_returns=len(self._runs), timeout=0)
        for run in ended:
            try:
                self._ray.get(run)
                reason = "it ended"
            except self._ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
            raise NoServersError(f"ComfyUI in {self._comfyui} did not start: {reason}")

    def close(self) -> None:
        """End the servers."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []


def _free_ports(count: int) -> list[int]:
    import socket

    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _comfyui_class() -> type:
    class ComfyUIServer:
        """A process that becomes ComfyUI."""

        def __init__(self, comfyui: str, port: int, options: list, alone: bool):
            import os

            import ray

            address = "127.0.0.1" if alone else ray.util.get_node_ip_address()
            self._comfyui, self._host = comfyui, address
            self._arguments = ["main.py", "--listen", address, "--port", str(port), *options]
            for name in ("input", "output", "temp", "user"):
                if f"--{name}-directory" in options:
                    os.makedirs(options[options.index(f"--{name}-directory") + 1], exist_ok=True)

        def host(self) -> str:
            return self._host

        def serve(self) -> None:
            import os
            import runpy
            import sys

            # ComfyUI puts its own streams over these; the last reference to one would close what both write to
            self._streams = sys.stdout, sys.stderr
            os.chdir(self._comfyui)
            sys.path.insert(0, self._comfyui)
            sys.argv = list(self._arguments)
            runpy.run_path(f"{self._comfyui}/main.py", run_name="__main__")

    return ComfyUIServer
