"""What a server says about its nodes (/object_info): which values an input takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..boundary.values import shown
from ..servers.workflow import Graph, WorkflowError
from .placeholders import Placeholder, title

SHOWN_OPTIONS = 12
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True)
class NodeInput:
    """An input of a node class as a server describes it.

    kind: INT, FLOAT, BOOLEAN, STRING, COMBO, or a type that only a connection gives.
    """

    kind: str
    settings: Mapping
    options: tuple = ()

    @property
    def takes_file(self) -> bool:
        """Whether the editor has an upload button for it."""
        return any(name.endswith("_upload") and value for name, value in self.settings.items())

    def read(self, value) -> object:
        """Return a table's value as this input takes it. Raises ValueError with what is wrong."""
        if value is None:
            raise ValueError("the cell is empty")
        if self.kind == "STRING":
            return self._text(value)
        if self.kind == "COMBO":
            return self._option(value)
        if self.kind == "BOOLEAN":
            return self._boolean(value)
        if self.kind in ("INT", "FLOAT"):
            return self._in_range(self._number(value))
        raise ValueError(f"it takes a connection of type {self.kind}, not a value")

    def _text(self, value) -> str:
        if isinstance(value, (dict, list, bytes)):
            raise ValueError(f"{shown(value)} is not text")
        return str(value)

    def _option(self, value):
        if self.settings.get("multiselect") or "remote" in self.settings:
            return value
        for option in self.options:
            if value == option or str(value) == str(option):
                return option
        known = ", ".join(map(str, self.options[:SHOWN_OPTIONS]))
        more = len(self.options) - SHOWN_OPTIONS
        raise ValueError(
            f"{shown(value)} is not in its list: {known or 'the list is empty'}" + (f" and {more} more" * (more > 0))
        )

    def _boolean(self, value) -> bool:
        text = str(value).strip().lower()
        if text not in _TRUE + _FALSE:
            raise ValueError(f"{shown(value)} is neither true nor false")
        return text in _TRUE

    def _number(self, value) -> int | float:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError(f"{shown(value)} is not a number")
        try:
            number = float(value) if self.kind == "FLOAT" or isinstance(value, float) else int(value)
        except ValueError:
            raise ValueError(
                f"{shown(value)} is not {'a number' if self.kind == 'FLOAT' else 'a whole number'}"
            ) from None
        if not math.isfinite(number):
            raise ValueError(f"{shown(value)} is not a number")
        if self.kind == "FLOAT":
            return number
        if number != int(number):
            raise ValueError(f"{shown(value)} is not a whole number")
        return int(number)

    def _in_range(self, number: int | float) -> int | float:
        low, high = self.settings.get("min"), self.settings.get("max")
        if (low is not None and number < low) or (high is not None and number > high):
            raise ValueError(f"{number} is out of range: {low} to {high}")
        return number


class NodeCatalog:
    """The node classes of one server."""

    def __init__(self, server: str, object_info: Mapping):
        self.server, self._info = server, object_info

    def is_output(self, node_class: str) -> bool:
        """Return whether nodes of a class are what a run is for, as Save Image is."""
        return bool(self._info[node_class].get("output_node"))

    def outputs(self, node_class: str) -> list[str]:
        """Return the types of a class's outputs; none where the server does not know it."""
        return [str(kind) for kind in self._info.get(node_class, {}).get("output", ())]

    def input(self, node_class: str, name: str) -> NodeInput | None:
        """Return an input of a class; None where the class has no such input."""
        for group in ("required", "optional"):
            spec = self._info[node_class].get("input", {}).get(group, {}).get(name)
            if spec is not None:
                return _node_input(spec)
        return None

    def check_workflow(self, graph: Graph, placeholders: Sequence[Placeholder]) -> None:
        """Raise WorkflowError where this server has not all nodes, models and inputs that a workflow names."""
        for node_id, node in graph.items():
            node_class, name = node["class_type"], f"node {node_id} ({title(graph, node_id)})"
            if node_class not in self._info:
                raise WorkflowError(
                    f"{self.server} has no node {node_class}, which {name} is. Install its custom nodes on that server."
                )
            filled = {each.input for each in placeholders if each.node == node_id}
            for field, value in node["inputs"].items():
                known = self.input(node_class, field)
                if known is None or field in filled or isinstance(value, (list, dict)) or known.takes_file:
                    continue
                if known.kind == "COMBO":
                    try:
                        known.read(value)
                    except ValueError as error:
                        raise WorkflowError(f"{self.server}: {name}, input {field}: {error}") from None
        if not any(self.is_output(node["class_type"]) for node in graph.values()):
            raise WorkflowError("the workflow has no output node, such as Save Image: it would give nothing.")
        for each in placeholders:
            self.placeholder_input(graph, each)

    def placeholder_input(self, graph: Graph, placeholder: Placeholder) -> NodeInput:
        """Return the input that a placeholder names. Raises WorkflowError."""
        node_class = graph[placeholder.node]["class_type"]
        if node_class not in self._info:
            raise WorkflowError(f"--set {placeholder}: {self.server} has no node {node_class}.")
        found = self.input(node_class, placeholder.input)
        if found is None:
            names = [
                name for group in ("required", "optional") for name in self._info[node_class]["input"].get(group, {})
            ]
            raise WorkflowError(
                f"--set {placeholder}: {title(graph, placeholder.node)} has no input {placeholder.input!r} on "
                f"{self.server}. It has {', '.join(names) or 'none'}."
            )
        if found.kind not in ("INT", "FLOAT", "BOOLEAN", "STRING", "COMBO"):
            raise WorkflowError(
                f"--set {placeholder}: {placeholder.input} takes a connection of type {found.kind}, not a value."
            )
        return found


def _node_input(spec: Sequence) -> NodeInput:
    """Read ["INT", {"min": 0}], [[options], {}] or ["COMBO", {"options": []}]."""
    settings = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    if isinstance(spec[0], (list, tuple)):
        return NodeInput("COMBO", settings, tuple(spec[0]))
    return NodeInput(str(spec[0]), settings, tuple(settings.get("options", ())))
