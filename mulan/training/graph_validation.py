"""Validation images by a graph of yours in a running ComfyUI: its MuLan Loader gets the adapter as it stands."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..conditioning.adapter import to_published
from ..servers.credentials import read_addresses
from ..servers.ended import failure_of, succeeded
from ..servers.server_client import LostError, RefusedError, ServerClient
from ..servers.workflow import Graph, load_workflow
from .tensor_store import write_safetensors

LOADER, CLIP_OUTPUT = "MuLanLoader", 1
SUBFOLDER = "training"  # of models/mulan
SECONDS = 0.5  # between two looks at the history


class GraphValidation:
    """A `validate` that has a ComfyUI draw the prompts by a graph, and writes its images into the run's folder.

    adapters: that ComfyUI's models/mulan. Without prompts the graph's own texts are drawn. Raises ValueError for a
    graph without MuLan Loader or images, and where no ComfyUI with this pack answers.
    """

    def __init__(self, workflow: Path, server: str, adapters: Path, prompts: Sequence[str], folder: Path):
        self.graph, self.workflow = load_workflow(workflow), workflow
        (self.server,) = read_addresses([server], "--server")
        self.adapters, self.folder = adapters, folder
        self.loaders = [node_id for node_id, node in self.graph.items() if node["class_type"] == LOADER]
        if not self.loaders:
            raise ValueError(f"{workflow} has no MuLan Loader, which the adapter in training would be loaded by")
        if not adapters.is_dir():
            raise ValueError(
                f"{adapters.absolute()} is no folder: name the models/mulan of the ComfyUI at {self.server} with "
                f"--adapters"
            )
        self.texts = self._texts()
        if prompts and not self.texts:
            raise ValueError(
                f"{workflow} has no text that is encoded with MuLan Loader's CLIP, so --prompt has no place in it: "
                f"leave --prompt out, and the graph is drawn as it is"
            )
        self.prompts = tuple(prompts)
        self.metadata: Mapping[str, str] = {}  # of the adapter's file, by which MuLan Loader tells its text encoder
        self._last: Path | None = None
        nodes = self._wait_for(lambda client: client.object_info())
        missing = sorted({node["class_type"] for node in self.graph.values()} - nodes.keys())
        if missing:
            raise ValueError(f"the ComfyUI at {self.server} has no node {missing[0]}, which {workflow.name} needs")
        if not any(nodes[node["class_type"]].get("output_node") for node in self.graph.values()):
            raise ValueError(f"{workflow} saves no image: add a Save Image or Preview Image node")

    def __call__(self, step: int, adapter: Any) -> None:
        """Draw; what goes wrong is said, and training goes on."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = self._write_adapter(step, adapter)
            for number, graph in enumerate(self._graphs(name), 1):
                self._wait_for(
                    lambda client, graph=graph, number=number: self._draw(
                        client, graph, f"validation-{step:06d}-{number}"
                    )
                )
        except (ValueError, OSError) as error:
            print(f"\nno validation images of step {step}: {error}", flush=True)

    def _texts(self) -> list[str]:
        """Return the nodes whose text MuLan Loader's CLIP encodes."""
        clips = [[loader, CLIP_OUTPUT] for loader in self.loaders]
        return [
            node_id
            for node_id, node in self.graph.items()
            if isinstance(node["inputs"].get("text"), str) and node["inputs"].get("clip") in clips
        ]

    def _graphs(self, adapter: str) -> list[Graph]:
        """Return what to draw: a graph for each prompt, or the one as it is."""

        def graph(text: str | None) -> Graph:
            changes: dict[str, dict] = {node_id: {"adapter": adapter} for node_id in self.loaders}
            changes |= {node_id: {"text": text} for node_id in self.texts if text is not None}
            return {
                node_id: {**node, "inputs": {**node["inputs"], **changes.get(node_id, {})}}
                for node_id, node in self.graph.items()
            }

        return [graph(text) for text in self.prompts or (None,)]

    def _write_adapter(self, step: int, adapter: Any) -> str:
        """Write the adapter where MuLan Loader finds it, in place of the last one; return its name there."""
        name = f"{self.folder.name or 'run'}-{step:06d}.safetensors"
        path = self.adapters / SUBFOLDER / name
        path.parent.mkdir(exist_ok=True)
        tensors = {key: tensor.detach().to("cpu", torch.float16) for key, tensor in adapter.state_dict().items()}
        write_safetensors(path, to_published(tensors), dict(self.metadata))
        if self._last not in (None, path):
            self._last.unlink(missing_ok=True)
        self._last = path
        return f"{SUBFOLDER}/{name}"

    async def _draw(self, client: ServerClient, graph: Graph, name: str) -> None:
        prompt_id = str(uuid.uuid4())
        await client.post(graph, prompt_id)
        entry = await self._end(client, prompt_id)
        if not succeeded(entry):
            raise ValueError(failure_of(entry).message)
        images = [image for output in entry.get("outputs", {}).values() for image in output.get("images", ())]
        for number, image in enumerate(images, 1):
            more = f"-{number}" if len(images) > 1 else ""
            await client.download(image, self.folder / f"{name}{more}{Path(image['filename']).suffix}")

    async def _end(self, client: ServerClient, prompt_id: str) -> dict:
        """Return the history's entry when there is one. Raises LostError where the server forgot the graph."""
        missing = 0  # times in a row: between the queue and the history it is in neither for a moment
        while (entry := await client.history(prompt_id)) is None:
            missing = 0 if prompt_id in await client.queued() else missing + 1
            if missing >= 3:
                raise LostError("it does not know the graph any more: it was restarted, or its queue cleared")
            await asyncio.sleep(SECONDS)
        return entry

    def _wait_for(self, ask: Callable[[ServerClient], Coroutine]) -> Any:
        """Ask the server. Raises ValueError where it does not answer or refuses."""

        async def asked():
            client = ServerClient(self.server)
            await client.open()
            try:
                return await ask(client)
            finally:
                await client.close()

        try:
            return asyncio.run(asked())
        except (LostError, RefusedError) as error:
            raise ValueError(f"the ComfyUI at {self.server}: {error}") from error
