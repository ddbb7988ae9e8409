"""A real ComfyUI server in a process of its own, and a client of its queue."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import websocket
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
MODEL_FOLDERS = (
    "checkpoints",
    "clip_vision",
    "controlnet",
    "diffusion_models",
    "hypernetworks",
    "internvl",
    "internvl_chat",
    "loras",
    "mulan",
    "text_encoders",
    "vae",
    "visionllm",
)
REGISTERED = "mulan-nodes"  # the folder that the registry's copy gets
ENDINGS = ("execution_success", "execution_error", "execution_interrupted")

Progress = Callable[[str, int, int], None]  # (node id, step, steps)


class ServerError(RuntimeError):
    """The server did not start, stopped by itself, or did not answer."""


class GraphRejected(RuntimeError):
    """The queue refused a graph before running it.

    `error` is what is wrong with the graph as a whole, `node_errors` maps node ids to what is wrong with their inputs.
    """

    def __init__(self, answer: dict):
        self.error, self.node_errors = answer.get("error", {}), answer.get("node_errors", {})
        super().__init__(json.dumps(answer, indent=2, ensure_ascii=False))


class GraphFailed(RuntimeError):
    """A node raised while the graph ran.

    `node` is its id; `node_class`, `exception`, `message` and `traceback` say the rest.
    """

    def __init__(self, event: dict):
        self.node = event.get("node_id")
        self.node_class = event.get("node_type", "")
        self.exception = event.get("exception_type", "interrupted")
        self.message = event.get("exception_message", "").strip()
        self.traceback = event.get("traceback", [])
        super().__init__(f"node {self.node} ({self.node_class}) failed: {self.exception}: {self.message}")


@dataclass(frozen=True)
class Outputs:
    """What a finished graph left: per node id, what it showed (`nodes`) and the picture files it wrote (`files`, the
    bytes of each PNG).
    """

    nodes: dict[str, dict]
    files: dict[str, list[bytes]]

    @property
    def images(self) -> list[np.ndarray]:
        """All pictures in the order of the node ids, each uint8 [height, width, 3]."""
        return [decode(data) for files in self.files.values() for data in files]


def decode(picture_file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture_file)).convert("RGB"))


class ComfyServer:
    """`with ComfyServer(folder) as server: server.run(graph)`.

    comfyui: its folder; of its custom nodes only this pack is loaded. extra_models: a folder with the layout of
    models/ that is searched too. extra_nodes: a folder with the layout of custom_nodes/ whose packs are loaded too.
    port: 0 takes a free one. What the server writes goes to a temporary folder, except its log; or to `folder`, which
    stays, and which several servers may share. environment: variables besides our own. arguments: ComfyUI's, besides
    our own.
    """

    def __init__(
        self,
        comfyui: Path,
        *,
        cpu: bool = True,
        port: int = 0,
        extra_models: Path | None = None,
        extra_nodes: Path | None = None,
        log: Path | None = None,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        start_within: float = 300.0,
    ):
        self.comfyui, self.cpu, self.start_within = Path(comfyui), cpu, start_within
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self._extra_models, self._extra_nodes, self._given_log = extra_models, extra_nodes, log
        self._given_folder, self._environment = folder, environment or {}
        self._arguments = arguments
        self._ended: dict[str, tuple[str, dict]] = {}  # prompt id -> (ending, its data), until somebody waits for it
        self._process: subprocess.Popen | None = None
        self._socket: websocket.WebSocket | None = None

    def __enter__(self) -> "ComfyServer":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    # --- its life ---

    def start(self) -> None:
        """Start and return once the server answers; ServerError with the end of its log otherwise."""
        self.folder = self._given_folder or Path(tempfile.mkdtemp(prefix="comfy_server_"))
        self.log = self._given_log or self.folder / "server.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(self.log, "wb") as log:
                # a group of its own, so that whatever it starts ends with it
                self._process = subprocess.Popen(
                    self._command(),
                    cwd=self.comfyui,
                    env={**os.environ, **self._environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=os.name == "posix",
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
            self._wait_until_it_answers()
            self._client = uuid.uuid4().hex
            self._socket = websocket.create_connection(f"ws://{self.address}/ws?clientId={self._client}", timeout=60)
        except BaseException:
            self.stop()
            raise

    def _command(self) -> list[str]:
        packs = [pack.name for pack in self._extra_nodes.iterdir()] if self._extra_nodes else []
        command = server_command(self.comfyui, self.port, self.cpu, packs)
        command += ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
        for name in ("input", "output", "temp", "user"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            command += [f"--{name}-directory", str(self.folder / name)]
        folders = {}
        if self._extra_models:
            folders["models"] = {"base_path": str(self._extra_models), **{name: name for name in MODEL_FOLDERS}}
        if self._extra_nodes:
            folders["nodes"] = {"custom_nodes": str(self._extra_nodes)}
        if folders:
            config = self.folder / "extra_model_paths.yaml"
            config.write_text(json.dumps(folders), "utf-8")  # JSON is YAML
            command += ["--extra-model-paths-config", str(config)]
        return [*command, *self._arguments]

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self.start_within
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise self._error(f"ComfyUI ended with code {self.process.returncode} while starting")
            try:
                self.get("/system_stats")
                return
            except ServerError:
                time.sleep(0.2)
        raise self._error(f"ComfyUI did not answer on {self.url} within {self.start_within:.0f} s")

    def stop(self) -> None:
        """End the server and delete its temporary folder; harmless when it has ended already."""
        if self._socket:
            self._socket.close()
        if self._process:
            self._signal_all(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._signal_all(getattr(signal, "SIGKILL", signal.SIGTERM))
                self._process.wait()
        self._process = self._socket = None
        if self._given_folder is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End the server at once, as a crash or a person would; `stop` has to follow."""
        self._signal_all(getattr(signal, "SIGKILL", signal.SIGTERM))
        self.process.wait()

    @property
    def process(self) -> subprocess.Popen:
        """The server's process, while it runs."""
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process

    @property
    def socket(self) -> websocket.WebSocket:
        """What the server tells while it runs."""
        if self._socket is None:
            raise ServerError("the server is not running")
        return self._socket

    def _signal_all(self, number: int) -> None:
        """Signal the server and whatever it started."""
        if os.name != "posix":
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.process.pid)], capture_output=True)
            return
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def _error(self, what: str) -> ServerError:
        lines = self.log.read_text("utf-8", "replace").splitlines()[-30:]
        return ServerError("\n".join([f"{what}. The end of its log:", *("    " + line for line in lines)]))

    # --- its queue ---

    def post(self, graph: dict) -> str:
        """Queue a graph in API format; its prompt id, or GraphRejected."""
        try:
            return self.ask("/prompt", {"prompt": graph, "client_id": self._client})["prompt_id"]
        except urllib.error.HTTPError as refusal:
            if refusal.code != 400:
                raise
            raise GraphRejected(json.loads(refusal.read())) from None

    def wait(self, prompt_id: str, progress: Progress | None = None, seconds: float = 600.0) -> Outputs:
        """Wait for a posted graph; GraphFailed where a node raised, ServerError after `seconds` without its end."""
        deadline = time.monotonic() + seconds
        while prompt_id not in self._ended:
            event, data = self._next_event(deadline)
            if event in ENDINGS:
                self._ended[data["prompt_id"]] = event, data
            elif event == "progress" and progress and data["prompt_id"] == prompt_id:
                progress(data["node"], data["value"], data["max"])
        event, data = self._ended.pop(prompt_id)
        if event != "execution_success":
            raise GraphFailed(data)
        return self._outputs(prompt_id)

    def run(self, graph: dict, progress: Progress | None = None) -> Outputs:
        return self.wait(self.post(graph), progress)

    def _next_event(self, deadline: float) -> tuple[str, dict]:
        """The next message of the socket as (type, data); ("", {}) when there was none for a while."""
        if time.monotonic() > deadline:
            raise self._error("A graph did not end in time")
        try:
            message = self.socket.recv()
        except websocket.WebSocketTimeoutException:
            return "", {}
        except (websocket.WebSocketException, OSError):
            raise self._error(f"ComfyUI stopped in the middle of a graph (code {self.process.poll()})") from None
        if isinstance(message, bytes):  # a preview picture
            return "", {}
        message = json.loads(message)
        return message["type"], message["data"]

    def _outputs(self, prompt_id: str) -> Outputs:
        # The history gets its entry a moment after the socket tells the end.
        deadline = time.monotonic() + 30
        while not (entry := self.ask(f"/history/{prompt_id}").get(prompt_id)):
            if time.monotonic() > deadline:
                raise self._error(f"No history of the graph {prompt_id}")
            time.sleep(0.02)
        nodes = entry["outputs"]
        files = {
            node: [self.get("/view?" + urllib.parse.urlencode(picture)) for picture in nodes[node]["images"]]
            for node in sorted(nodes, key=node_order)
            if "images" in nodes[node]
        }
        return Outputs(nodes, files)

    # --- its other answers ---

    def get(self, path: str) -> bytes:
        return self._open(urllib.request.Request(self.url + path))

    def object_info(self, node_class: str) -> dict:
        """The schema of a node as the editor gets it; KeyError where the server does not know it."""
        return self.ask(f"/object_info/{node_class}")[node_class]

    def free(self) -> None:
        """Ask the server to unload every model; it does so within a second, between graphs."""
        self.ask("/free", {"unload_models": True, "free_memory": True})

    def interrupt(self) -> None:
        """Stop the graph that runs, as the editor's button does."""
        self.ask("/interrupt", {})

    def ask(self, path: str, body: dict | None = None) -> Any:
        """Return the answer to a request, as JSON; with a `body` it is posted."""
        data = None if body is None else json.dumps(body).encode()
        text = self._open(urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}))
        return json.loads(text) if text else None

    def _open(self, request: urllib.request.Request) -> bytes:
        """The body of the answer; urllib's HTTPError where the server refuses, ServerError where there is none."""
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            raise self._error(f"ComfyUI did not answer {request.selector} ({error})") from None


def server_command(comfyui: Path, port: int, cpu: bool, more_packs: Sequence[str] = ()) -> list[str]:
    """Starts ComfyUI with this pack and `more_packs` alone: other custom nodes may need packages that our environment
    does not have.
    """
    command = [
        sys.executable,
        "-u",
        str(comfyui / "main.py"),
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
        "--disable-all-custom-nodes",
        "--whitelist-custom-nodes",
        pack_name(comfyui),
        *more_packs,
    ]
    return command + ["--cpu"] if cpu else command


def node_order(node_id: str) -> tuple:
    return (0, int(node_id)) if node_id.isdigit() else (1, node_id)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pack_name(comfyui: Path) -> str:
    """The name in ComfyUI's custom_nodes of this repository, or of a copy as the registry ships it."""
    for entry in (comfyui / "custom_nodes").iterdir():
        if entry.resolve() == ROOT or entry.name == REGISTERED:
            return entry.name
    raise ServerError(f"This pack is not in {comfyui / 'custom_nodes'}: run python dev.py setup")
