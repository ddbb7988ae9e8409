"""Runs cases on a server that may fall: it starts again, and the next case goes on."""

from __future__ import annotations

import json
import re
import resource
import time
import urllib.error
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..comfy_server import ComfyServer, GraphFailed, GraphRejected, ServerError, pack_name
from . import model_files
from .cases import NODES, SAVED, SINK, Case, Cases, build
from .judging import SLOW, STOP, Verdict, of_failure, of_rejection, remember_sources

MEMORY = 8 * 2**30  # address space that the server may take beside what it has when it is ready
LARGE = 2 * 2**30  # a case that takes this much more memory is told


@dataclass
class Result:
    id: str
    verdict: Verdict
    seconds: float
    peak: int  # bytes beside what was in use before

    def record(self) -> dict:
        return {"id": self.id, **asdict(self.verdict), "seconds": round(self.seconds, 2), "peak": self.peak}


class Runner:
    """`start` gives a server that is running, `stop` ends it. Files of models go into `models`. `limit`: of memory."""

    def __init__(
        self,
        start: Callable[[], ComfyServer],
        models: Path,
        stop: Callable[[ComfyServer], object] = ComfyServer.stop,
        *,
        limit: bool = True,
    ):
        self._start, self._stop, self._models, self._limit = start, stop, models, limit
        self._server: ComfyServer | None = None

    @property
    def server(self) -> ComfyServer:
        if self._server is None:
            self._server = self._start()
            remember_sources(self._server.comfyui / "custom_nodes" / pack_name(self._server.comfyui))
            self._server.socket.settimeout(0.5)
            if self._limit:
                _limit_memory(self._server.process.pid)
        return self._server

    def close(self) -> None:
        if self._server is not None:
            self._stop(self._server)
            self._server = None

    def cases(self) -> Cases:
        """The cases of the nodes that this server knows as this pack's."""
        prepare(self.server)
        return Cases(pack_nodes(self.server), self.server.comfyui / "models")

    def run(self, cases: Iterable[Case]) -> Iterator[Result]:
        for case in cases:
            yield self.run_one(case)

    def run_one(self, case: Case) -> Result:
        server = self.server
        if case.file:
            place, damage, tiny = case.file
            model_files.write(damage, tiny, self._models / place)
        before, start = _forget_peak(server.process.pid), time.monotonic()
        try:
            verdict = self._verdict(server, case)
        finally:
            if case.file:
                model_files.remove(self._models / case.file[0])
        if case.kind == "right" and verdict.result == "clear":
            verdict = Verdict("unclear", f"the graph that works was refused: {verdict.message}", verdict.where)
        peak = max(0, _memory(server.process.pid, "VmHWM") - before) if self._server else 0
        return Result(case.id, verdict, time.monotonic() - start, peak)

    def _verdict(self, server: ComfyServer, case: Case) -> Verdict:
        try:
            prompt = server.post(case.graph)
        except GraphRejected as refusal:
            return of_rejection(refusal)
        except urllib.error.HTTPError as error:
            return Verdict("comfyui", f"HTTP {error.code}: {error.reason}")
        except ServerError as error:
            return self._fallen(server, error)
        try:
            outputs = server.wait(prompt, seconds=SLOW)
        except GraphFailed as failure:
            return of_failure(failure, server.comfyui)
        except ServerError as error:
            if server.process.poll() is not None:
                return self._fallen(server, error)
            return self._stopped(server, prompt)
        if SINK in case.graph and SINK not in outputs.nodes:
            return Verdict("clear", "ComfyUI refused a value and ran the other output nodes", "validation")
        told = outputs.nodes.get(SINK, {})
        if not case.answers:
            return Verdict("silent", "answered: " + "".join(told.get("told", []))[:300], case.id.split("/")[0])
        if case.finite and not all(told.get("finite", [True])):
            return Verdict("silent", "not finite: " + "".join(told.get("told", []))[:300], case.id.split("/")[0])
        return Verdict("ok")

    def _stopped(self, server: ComfyServer, prompt: str) -> Verdict:
        start = time.monotonic()
        try:
            server.interrupt()
            server.wait(prompt, seconds=STOP + 0.5)
        except GraphFailed:
            pass
        except ServerError:
            self.close()
            return Verdict("hang", f"over {SLOW:.0f} s, and Stop did not end it")
        took = time.monotonic() - start
        if took > STOP:
            return Verdict("hang", f"over {SLOW:.0f} s, and Stop took {took:.1f} s")
        return Verdict("slow", f"over {SLOW:.0f} s; Stop ended it after {took:.1f} s")

    def _fallen(self, server: ComfyServer, error: ServerError) -> Verdict:
        code = server.process.poll()
        end = [line for line in str(error).splitlines() if line.strip()][-1:]
        self.close()
        if code is None:
            return Verdict("hang", "the server did not answer")
        return Verdict("crash", f"code {code}: {' '.join(end).strip()[:200]}")


def prepare(server: ComfyServer) -> None:
    """Leave files that loaders of saved results can list."""
    graph = {
        "mulan": NODES["mulan"],
        "conditioning": NODES["conditioning"],
        "save": build("MuLanSaveConditioning", conditioning=["conditioning", 0], filename_prefix=SAVED),
    }
    server.run(graph)


def pack_nodes(server: ComfyServer) -> dict[str, dict]:
    """object_info of this pack's nodes."""
    everything = json.loads(server.get("/object_info"))
    module = f"custom_nodes.{pack_name(server.comfyui)}"
    return {name: told for name, told in everything.items() if told["python_module"] == module}


def _limit_memory(pid: int) -> None:
    if hasattr(resource, "prlimit"):
        limit = _memory(pid, "VmSize") + MEMORY
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


def _memory(pid: int, name: str) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def _forget_peak(pid: int) -> int:
    """Set the highest memory so far to the present; return that."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        pass
    return _memory(pid, "VmRSS")
