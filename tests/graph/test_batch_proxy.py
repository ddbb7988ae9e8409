"""`mulan.batch` through a proxy that asks for a token and serves ComfyUI below a path: images go up and come down."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import numpy as np
from aiohttp import web
from PIL import Image

from mulan_nodes.tests.graph.test_batch import batch, files
from mulan_nodes.tools.batch import trial
from mulan_nodes.tools.comfy_server import free_port

TOKEN = "token-of-this-test"
COPY = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copy"}},
}


class Proxy:
    """Passes on what has the token; keeps the bodies that go to the server, and counts websockets and refusals."""

    def __init__(self, target: str):
        self.target, self.bodies, self.sockets, self.refused = target, [], 0, 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refused += 1
            return web.Response(status=401, text="no token")
        url = f"{self.target}{request.rel_url.path_qs.removeprefix('/comfy/3')}"
        async with aiohttp.ClientSession() as session:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._pass_messages(session, request, url)
            body = await request.read()
            self.bodies.append(body)
            kept = {"Content-Type": request.headers["Content-Type"]} if "Content-Type" in request.headers else {}
            async with session.request(request.method, url, data=body, headers=kept) as answer:
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

    async def _pass_messages(self, session: aiohttp.ClientSession, request: web.Request, url: str):
        self.sockets += 1
        ours = web.WebSocketResponse()
        await ours.prepare(request)
        async with session.ws_connect(url) as theirs:

            async def down() -> None:
                async for message in theirs:
                    send = ours.send_str if message.type is aiohttp.WSMsgType.TEXT else ours.send_bytes
                    await send(message.data)

            passing = asyncio.ensure_future(down())
            async for _ in ours:  # the command says nothing: this ends when it leaves
                pass
            passing.cancel()
        return ours


@contextmanager
def proxied(target: str) -> Iterator[tuple[Proxy, str]]:
    """Run a proxy before the server at `target`; yield it and its address."""
    proxy, port, loop = Proxy(target), free_port(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/comfy/3/{rest:.*}", proxy.handle)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy, f"http://127.0.0.1:{port}/comfy/3"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def test_images_go_up_and_come_down_behind_a_token_and_a_path(server, tmp_path):
    wanted = {}
    for number, name in enumerate(("ä", "b")):
        wanted[name] = np.random.default_rng(number).integers(256, size=(24, 40, 3), dtype=np.uint8)
        Image.fromarray(wanted[name]).save(tmp_path / f"{name}.png")
    (tmp_path / "table.csv").write_text("id,picture\nä,ä.png\nb,b.png\n", "utf-8")
    (tmp_path / "graph.json").write_text(json.dumps(COPY), "utf-8")
    (tmp_path / "headers").write_text(f"Authorization: Bearer {TOKEN}\n", "utf-8")
    out = tmp_path / "out"
    with proxied(server.url) as (proxy, address):
        command = (tmp_path / "table.csv", tmp_path / "graph.json", "--servers", address, "--out", out)
        command += ("--set", "LoadImage.image=picture")
        refused = batch(*command)
        message = refused.stdout + refused.stderr
        assert refused.returncode == 2 and all(part in message for part in (address, "401", "--header-file")), message
        assert proxy.refused and not proxy.bodies and not proxy.sockets

        ended = batch(*command, "--header-file", tmp_path / "headers")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert proxy.sockets, "progress comes through the proxy too"
        records = trial.records(out)
        assert records.keys() == wanted.keys()
        for name, record in records.items():
            (file,) = record["files"]
            assert np.array_equal(np.asarray(Image.open(out / file["name"]).convert("RGB")), wanted[name])
        assert not [body for body in proxy.bodies if str(tmp_path).encode() in body], "a path of the command's machine"
    said = [ended.stdout, ended.stderr, *(path.read_text("utf-8", "replace") for path in files(out) if text(path))]
    assert not [each for each in said if TOKEN in each]


def text(path: Path) -> bool:
    return path.suffix in (".jsonl", ".md", ".json")
