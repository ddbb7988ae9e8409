"""Workflows in API format, as they are sent to a server."""

from __future__ import annotations

from pathlib import Path

from ..boundary.files import parse_json

Graph = dict[str, dict]


class WorkflowError(ValueError):
    """The workflow, or what is to be filled into it, is wrong; the message says what to do."""


def load_workflow(path: Path) -> Graph:
    """Read a workflow in API format: {node id: {"class_type", "inputs"}}. Raises WorkflowError."""
    try:
        graph = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise WorkflowError(f"{path.name} is not in {path.absolute().parent}.") from None
    except (OSError, ValueError) as error:
        raise WorkflowError(f"{path} is not a readable workflow: {error}") from error
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise WorkflowError(
            f"{path.name} is a workflow as the editor saves it. Export it for the API: in the editor's menu "
            "Workflow > Export (API)."
        )
    if isinstance(graph, dict) and isinstance(graph.get("prompt"), dict):
        graph = graph["prompt"]  # as it is posted
    if not isinstance(graph, dict) or not graph:
        raise WorkflowError(f"{path.name} is not a workflow in API format: it has no nodes.")
    for node_id, node in graph.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise WorkflowError(f"{path.name} is not a workflow in API format: {node_id!r} has no class_type.")
        if not isinstance(node.setdefault("inputs", {}), dict):
            raise WorkflowError(f"{path.name}: the inputs of node {node_id!r} are not an object.")
    return graph
