"""Texts in nodes go to the client that asked for the run, and to no other."""

from __future__ import annotations

import json
import time
import uuid

import pytest
import websocket

from mulan_nodes.nodes.common import TEXT_EVENT, TEXT_OUTPUT

GRAPH = {
    "1": {
        "class_type": "MuLanLoader",
        "inputs": {
            "text_encoder": "tiny_internvl.safetensors",
            "adapter": "tiny_sd15_adapter.safetensors",
            "prompt_style": "default",
        },
    },
    "2": {"class_type": "MuLanPromptInspector", "inputs": {"clip": ["1", 1]}},
    "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
}


class Client:
    """A browser's tab: its own socket."""

    def __init__(self, server):
        self.id = uuid.uuid4().hex
        self.socket = websocket.create_connection(f"ws://{server.address}/ws?clientId={self.id}", timeout=1)

    def texts(self) -> list[tuple[str, str]]:
        """(node, text) of the messages that have come, and of those that come within a second: while a node runs, and
        as its result.
        """
        found = []
        while True:
            try:
                message = self.socket.recv()
            except websocket.WebSocketTimeoutException:
                return found
            if isinstance(message, str):
                event = json.loads(message)
                if event["type"] == TEXT_EVENT:
                    found.append((event["data"]["node"], event["data"]["text"]))
                elif event["type"] == "executed" and TEXT_OUTPUT in (event["data"]["output"] or {}):
                    found.append((event["data"]["node"], *event["data"]["output"][TEXT_OUTPUT]))


@pytest.fixture
def clients(server):
    made = Client(server), Client(server)
    yield made
    for client in made:
        client.socket.close()


def run(server, text: str, client: str | None):
    graph = json.loads(json.dumps(GRAPH))
    graph["2"]["inputs"]["text"] = text
    prompt_id = server.ask("/prompt", {"prompt": graph} | ({"client_id": client} if client else {}))["prompt_id"]
    deadline = time.monotonic() + 60
    while not server.ask(f"/history/{prompt_id}"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_only_the_client_that_asked_gets_the_texts(server, clients):
    first, second = clients
    run(server, "a prompt of the first client", first.id)
    run(server, "a prompt of the second client", second.id)
    mine, other = first.texts(), second.texts()
    assert [node for node, _ in mine] == [node for node, _ in other] == ["2"]
    assert "window 1" in mine[0][1] and "window 1" in other[0][1] and mine != other


def test_a_run_that_no_client_waits_for_is_shown_to_none(server, clients):
    run(server, "a prompt of a program that does not listen", None)
    assert [client.texts() for client in clients] == [[], []]
