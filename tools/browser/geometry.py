"""Rectangles of nodes and groups: which overlap, what sticks out, at which zoom a graph opens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TITLE = 30  # height of a node's title bar, which lies above its position
TOUCH = 1.0  # pixels that two rectangles may share: the browser rounds
FILL = 0.75  # of the canvas is what the editor gives to a graph that it opens
SMALLEST_FONT = 8.0  # pixels, below which the classic canvas leaves out texts
NODE_FONT = 14.0


@dataclass(frozen=True)
class Rectangle:
    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height

    def overlaps(self, other: Rectangle) -> bool:
        return (
            min(self.right, other.right) - max(self.left, other.left) > TOUCH
            and min(self.bottom, other.bottom) - max(self.top, other.top) > TOUCH
        )

    def holds(self, other: Rectangle) -> bool:
        return (
            other.left >= self.left - TOUCH
            and other.top >= self.top - TOUCH
            and other.right <= self.right + TOUCH
            and other.bottom <= self.bottom + TOUCH
        )


@dataclass(frozen=True)
class Node:
    id: str
    type: str
    title: str
    note: bool
    rectangle: Rectangle


@dataclass(frozen=True)
class Group:
    title: str
    rectangle: Rectangle


@dataclass(frozen=True)
class Layout:
    """Where an editor draws the nodes and groups of a graph."""

    nodes: Sequence[Node]
    groups: Sequence[Group]

    @classmethod
    def read(cls, found: dict) -> Layout:
        """Take what page.js measured."""
        return cls(
            [
                Node(node["id"], node["type"], node["title"], node["note"], Rectangle(*node["rectangle"]))
                for node in found["nodes"]
            ],
            [Group(group["title"], Rectangle(*group["rectangle"])) for group in found["groups"]],
        )

    def overlaps(self) -> list[tuple[Node, Node]]:
        return [(a, b) for a, b in itertools.combinations(self.nodes, 2) if a.rectangle.overlaps(b.rectangle)]

    def outside(self) -> list[tuple[Node, Group]]:
        """Return nodes that a group touches but does not hold, with that group."""
        return [
            (node, group)
            for node in self.nodes
            for group in self.groups
            if group.rectangle.overlaps(node.rectangle) and not group.rectangle.holds(node.rectangle)
        ]


def around(rectangles: Iterable[Rectangle]) -> Rectangle:
    """Return the smallest rectangle that holds all of these."""
    every = list(rectangles)
    left, top = min(one.left for one in every), min(one.top for one in every)
    return Rectangle(left, top, max(one.right for one in every) - left, max(one.bottom for one in every) - top)


def zoom(graph: Rectangle, canvas: tuple[float, float]) -> float:
    """Return the zoom at which the editor opens a graph of these bounds on a canvas of this size."""
    return min(FILL * canvas[0] / max(graph.width, 300), FILL * canvas[1] / max(graph.height, 300), 10.0)


def readable(at_zoom: float) -> bool:
    """Whether the classic canvas draws texts at this zoom."""
    return at_zoom * NODE_FONT >= SMALLEST_FONT
