"""A stand-in for Hugging Face on loopback: the API's list of files, resolve addresses, and a store behind redirects.

What it answers can be made to fail: see `Hub.faults`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

LFS_FROM = 2000  # bytes; larger files lie in the store
BLOCK = 2**20


@dataclass
class Request:
    path: str
    range: str | None
    token: str | None
    sent: int = 0


@dataclass
class Hub:
    """`repositories`: id -> (commit, folder). `faults`: one is taken per request to a file that it matches.

    A fault is (text in the path, what): a status or (status, headers); "cut" after `cut_after` bytes; "stall"; "whole"
    (ranges are ignored); "commit" (of another revision); "size" (the store has another one); "linked" (the hub says).
    """

    repositories: dict[str, tuple[str, Path]] = field(default_factory=dict)
    faults: list[tuple[str, object]] = field(default_factory=list)
    cut_after: int = 1000
    private: str | None = None  # the token without which there is nothing
    requests: list[Request] = field(default_factory=list)
    speed: float = 0.0  # bytes per second; 0: as fast as it goes
    sizes: dict[str, int] = field(default_factory=dict)  # what the list of files says instead
    url: str = ""
    store: str = ""

    def add(self, id: str, folder: Path, commit: str = "a" * 40) -> str:
        self.repositories[id] = (commit, folder)
        return id

    def sent(self, part: str = "") -> int:
        return sum(request.sent for request in self.requests if part in request.path)

    def fault(self, path: str) -> object:
        for index, (part, what) in enumerate(self.faults):
            if part in path:
                del self.faults[index]
                return what
        return None


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    servers = [_Server(("127.0.0.1", 0), _handler(hub)) for _ in range(2)]
    hub.url, hub.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that stop reading are part of what is tested


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            path = unquote(urlparse(self.path).path)
            request = Request(path, self.headers.get("Range"), self.headers.get("Authorization"))
            hub.requests.append(request)
            fault = hub.fault(path)
            if isinstance(fault, int):
                fault = (fault, {})
            if isinstance(fault, tuple):
                return self.answer(fault[0], b"try later", fault[1])
            if path.startswith("/api/models/"):
                return self.api(path.removeprefix("/api/models/"))
            if path.startswith("/store/"):
                return self.content(Path(path.removeprefix("/store")), request, fault, {})
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if found is None or found[1] not in hub.repositories or not self.permitted():
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            commit, folder = hub.repositories[found[1]]
            if found[2] not in (commit, "main"):
                return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            file = folder / found[3]
            headers = {"X-Repo-Commit": "f" * 40 if fault == "commit" else commit}
            if file.stat().st_size <= LFS_FROM:
                return self.content(file, request, fault, headers)
            headers["X-Linked-Size"] = str(file.stat().st_size + (7 if fault == "linked" else 0))
            self.answer(302, b"", {**headers, "Location": f"{hub.store}/store{file}"})

        def permitted(self) -> bool:
            return hub.private is None or self.headers.get("Authorization") == f"Bearer {hub.private}"

        def api(self, path: str):
            found = re.fullmatch(r"([^/]+/[^/]+)(?:/revision/(.+))?", path)
            if found is None or found[1] not in hub.repositories or not self.permitted():
                return self.answer(
                    401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"}
                )
            commit, folder = hub.repositories[found[1]]
            if found[2] not in (None, "main", commit):
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            siblings = []
            for file in sorted(folder.iterdir()):
                size = hub.sizes.get(file.name, file.stat().st_size)
                entry = {"rfilename": file.name, "size": size, "blobId": "0" * 40}
                if size > LFS_FROM:
                    digest = hashlib.sha256(file.read_bytes()).hexdigest() if size < 2**26 else "0" * 64
                    entry["lfs"] = {"sha256": digest, "size": size, "pointerSize": 134}
                siblings.append(entry)
            info = {"id": found[1], "modelId": found[1], "sha": commit, "siblings": siblings, "tags": []}
            self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def content(self, file: Path, request: Request, fault: object, headers: dict[str, str]):
            size = file.stat().st_size + (5 if fault == "size" else 0)
            range_ = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range or "") if fault != "whole" else None
            start = int(range_[1]) if range_ else 0
            end = min(size, int(range_[2]) + 1 if range_ and range_[2] else size)
            if range_ and start >= size:
                return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            self.send_response(206 if range_ else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            if range_:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            limit = hub.cut_after if fault == "cut" else end - start
            with open(file, "rb") as opened:
                opened.seek(start)
                while request.sent < limit:
                    if fault == "stall":
                        time.sleep(20)
                    block = opened.read(min(BLOCK if not hub.speed else 2**14, limit - request.sent))
                    if not block:
                        break
                    self.wfile.write(block)
                    request.sent += len(block)
                    if hub.speed:
                        time.sleep(len(block) / hub.speed)
            if request.sent < end - start:
                self.close_connection = True

        def answer(self, status: int, body: bytes, headers: dict[str, str]):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


Patch = Callable[..., None]


def use(hub: Hub, monkeypatch, cache: Path) -> None:
    """Let huggingface_hub of this process ask the stand-in, as HF_ENDPOINT and HF_HOME do at its start."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
