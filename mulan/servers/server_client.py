"""One ComfyUI server over HTTP, perhaps behind a proxy that wants a token: its queue, its history, its files."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from ..boundary.files import WholeFile
from .credentials import server_name
from .workflow import Graph

SECONDS = 60.0  # until a request counts as lost
QUICK = 5.0  # the same for the first sign of life
BLOCK = 2**18  # bytes of a file that are in memory


class LostError(RuntimeError):
    """The server did not answer, or not as ComfyUI does."""


class RefusedError(RuntimeError):
    """The server answered that it does not want this; `message` has its words, `details` what it said."""

    def __init__(self, message: str, details: dict | None = None):
        super().__init__(message)
        self.details = details or {}


class ServerClient:
    """A server, between `open` and `close`.

    headers go with every request to this server, and nowhere else: redirects are not followed. name: its address as
    messages say it.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, client_id: str = ""):
        self._url, self.name = url.rstrip("/"), server_name(url)
        self._headers, self._client_id = dict(headers or {}), client_id
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Begin; the server is not asked yet."""
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SECONDS)
        )

    async def close(self) -> None:
        """End the connections."""
        if self._session:
            await self._session.close()

    # --- the queue

    async def post(self, graph: Graph, prompt_id: str) -> None:
        """Queue a graph under an id of our own. Raises RefusedError where the server finds it wrong."""
        await self.ask("/prompt", {"prompt": graph, "prompt_id": prompt_id, "client_id": self._client_id})

    async def history(self, prompt_id: str) -> dict | None:
        """Return what became of a graph; None where it has not ended or is not known."""
        return (await self.ask(f"/history/{prompt_id}")).get(prompt_id)

    async def queued(self) -> list[str]:
        """Return the ids of what runs and waits, in this order."""
        queue = await self.ask("/queue")
        return [item[1] for name in ("queue_running", "queue_pending") for item in queue.get(name, ())]

    async def delete(self, prompt_ids: list[str]) -> None:
        """Take graphs out of the queue that wait in it."""
        await self.ask("/queue", {"delete": prompt_ids}, answer=False)

    async def interrupt(self, prompt_id: str) -> None:
        """Stop a graph if it is the one that runs."""
        await self.ask("/interrupt", {"prompt_id": prompt_id}, answer=False)

    async def forget(self, prompt_id: str) -> None:
        """Remove an ended graph from the history."""
        await self.ask("/history", {"delete": [prompt_id]}, answer=False)

    async def object_info(self) -> dict:
        """Return the nodes that the server has."""
        return await self.ask("/object_info")

    async def is_up(self) -> bool:
        """Return whether the server answers."""
        try:
            await asyncio.wait_for(self.ask("/queue"), QUICK)
            return True
        except (LostError, RefusedError, asyncio.TimeoutError):
            return False

    # --- files

    async def upload(self, file: Path, name: str) -> str:
        """Put a file into the server's input folder; return the name under which nodes find it."""
        folder, _, base = name.rpartition("/")
        with open(file, "rb") as data:
            form = aiohttp.FormData()
            form.add_field("image", data, filename=base)
            form.add_field("type", "input")
            form.add_field("subfolder", folder)
            answer = await self._request("POST", "/upload/image", data=form)
        stored = json.loads(answer)
        return "/".join(part for part in (stored["subfolder"], stored["name"]) if part)

    async def download(self, where: Mapping[str, str], target: Path) -> dict:
        """Write a file of the server to `target`, whole or not at all; return its sha256 and bytes."""
        query = {name: str(where.get(name, "")) for name in ("filename", "subfolder", "type")}
        digest, size = hashlib.sha256(), 0
        with WholeFile(target) as file:
            async for block in self._blocks("/view", query):
                digest.update(block)
                size += len(block)
                file.write(block)
        return {"sha256": digest.hexdigest(), "bytes": size}

    # --- what happens meanwhile

    async def events(self, see: Callable[[str], None]) -> None:
        """Tell `see` the type of each event of the server until the connection ends."""
        session = self._opened()
        url = self._url.replace("http", "ws", 1) + f"/ws?clientId={self._client_id}"
        with suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError):
            async with session.ws_connect(url, heartbeat=30, max_msg_size=0) as socket:
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        see(json.loads(message.data).get("type", ""))

    # --- requests

    async def ask(self, path: str, body: dict | None = None, answer: bool = True) -> Any:
        """Return the answer to a request, as JSON; with a `body` it is posted."""
        text = await (self._request("GET", path) if body is None else self._request("POST", path, json=body))
        if not answer:
            return None
        try:
            return json.loads(text)
        except ValueError:
            raise LostError(f"{self.name}{path} answered {text[:80]!r}, which is not ComfyUI's") from None

    async def _request(self, method: str, path: str, **options) -> bytes:
        try:
            async with self._opened().request(method, self._url + path, allow_redirects=False, **options) as answer:
                text = await answer.read()
                await self._check(answer, path, text)
                return text
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise LostError(f"{self.name} does not answer: {error or type(error).__name__}") from error

    async def _blocks(self, path: str, query: dict[str, str]) -> AsyncIterator[bytes]:
        try:
            async with self._opened().get(self._url + path, params=query, allow_redirects=False) as answer:
                if answer.status != 200:
                    await self._check(answer, f"{path} {query['subfolder']}/{query['filename']}", await answer.read())
                expected, size = answer.content_length, 0
                async for block in answer.content.iter_chunked(BLOCK):
                    size += len(block)
                    yield block
                if expected is not None and "Content-Encoding" not in answer.headers and size != expected:
                    raise LostError(f"{self.name} sent {size} of {expected} bytes")
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise LostError(f"{self.name} does not answer: {error or type(error).__name__}") from error

    async def _check(self, answer: aiohttp.ClientResponse, path: str, text: bytes) -> None:
        if answer.status < 300:
            return
        words = text.decode("utf-8", "replace")
        if answer.status == 400 and path == "/prompt":
            details = _json_object(words)
            raise RefusedError(_refusal(details) or words[:500], details)
        if answer.status in (401, 403):
            raise RefusedError(
                f"{self.name} wants other credentials (HTTP {answer.status}): check --header-file or --header"
            )
        if answer.status < 400:
            raise RefusedError(f"{self.name} redirects to {answer.headers.get('Location')}: give that address")
        if answer.status >= 500 or answer.status in (408, 429):
            raise LostError(f"{self.name}{path} answered HTTP {answer.status}: {words[:200]}")
        raise RefusedError(f"{self.name}{path} answered HTTP {answer.status}: {words[:200]}")

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is not open")
        return self._session


def _json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _refusal(details: dict) -> str:
    """Return the server's words about a graph that it refused: the graph's error and each node's."""
    error = details.get("error")
    lines = [str(error.get("message", ""))] if isinstance(error, dict) else [str(error or "")]
    nodes = details.get("node_errors")
    for node_id, node in nodes.items() if isinstance(nodes, dict) else ():
        for each in node.get("errors", ()):
            lines.append(f"node {node_id} ({node.get('class_type')}): {each.get('message')}: {each.get('details')}")
    return "; ".join(line for line in lines if line)
