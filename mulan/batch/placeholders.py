"""Which input of which node of a workflow a column fills."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..servers.workflow import Graph, WorkflowError


@dataclass(frozen=True)
class Placeholder:
    """An input of a node that a column of the table fills."""

    node: str  # id
    input: str
    column: str

    def __str__(self) -> str:
        return f"{self.node}.{self.input}={self.column}"


def title(graph: Graph, node: str) -> str:
    """Return what a person calls a node: its title, else its class."""
    return _own_title(graph[node]) or graph[node]["class_type"]


def _own_title(node: dict) -> str:
    meta = node.get("_meta")
    name = meta.get("title") if isinstance(meta, dict) else None
    return name if isinstance(name, str) else ""


def find_node(graph: Graph, name: str) -> str:
    """Return the id of the node with this id, this title or of this class. Raises WorkflowError unless it is one."""
    if name in graph:
        return name
    for holds in (lambda node: _own_title(graph[node]) == name, lambda node: graph[node]["class_type"] == name):
        found = [node for node in graph if holds(node)]
        if len(found) == 1:
            return found[0]
        if found:
            raise WorkflowError(f"{name!r} is the name of {len(found)} nodes. Use one's id: {', '.join(found)}.")
    known = ", ".join(f"{node} ({title(graph, node)})" for node in graph)
    raise WorkflowError(f"the workflow has no node {name!r}. It has {known}.")


def parse_placeholders(graph: Graph, texts: Sequence[str]) -> list[Placeholder]:
    """Read `node.input=column`, where a node is its id, title or class. Raises WorkflowError."""
    found: list[Placeholder] = []
    for text in texts:
        left, is_there, column = text.partition("=")
        name, dot, field = left.rpartition(".")
        if not (is_there and dot and name and field and column):
            raise WorkflowError(f"--set {text}: write node.input=column, such as 6.text=prompt.")
        node = find_node(graph, name)
        if any((other.node, other.input) == (node, field) for other in found):
            raise WorkflowError(f"--set {text}: {title(graph, node)}.{field} is set twice.")
        found.append(Placeholder(node, field, column))
    return found


def fill(graph: Graph, values: Mapping[tuple[str, str], object], prefix: str) -> Graph:
    """Return a copy of the graph with values by (node, input).

    Every `filename_prefix` that no column fills becomes `prefix`: servers that share their output folder then never
    write the same file.
    """
    filled = {}
    for node_id, node in graph.items():
        inputs = dict(node["inputs"])
        if isinstance(inputs.get("filename_prefix"), str):
            inputs["filename_prefix"] = prefix
        inputs.update({field: value for (of, field), value in values.items() if of == node_id})
        filled[node_id] = {**node, "inputs": inputs}
    return filled


def canonical(graph: Graph) -> str:
    """Return a graph as text that is the same for the same graph; titles do not count."""
    plain = {node_id: {"class_type": node["class_type"], "inputs": node["inputs"]} for node_id, node in graph.items()}
    return json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
