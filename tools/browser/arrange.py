"""Lay a graph out by what each node needs: columns from left to right along the links, even gaps, groups around their
nodes.

The graph is the document of a workflow, as JSON; sizes are [width, height] of the body, without the title bar.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .geometry import TITLE, Rectangle, zoom

GRID = 10
LEFT, TOP = 40, 90  # of the first node's title bar
GAP_X, GAP_Y = 50, 30
GROUP_GAP = 60
PADDING, HEADER = 20, 50  # of a group around its nodes: sides and bottom, above
CANVAS = (1600, 1000)
ENOUGH = 0.8  # zoom beyond which a graph only gets harder to follow
DOWNWARD = 40  # what a link that goes down within a column costs, in pixels of width

Sizes = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Block:
    """A group, or the nodes outside all groups; ids in the order of reading."""

    group: int | None
    ids: tuple[str, ...]


def arrange(graph: dict, sizes: Sizes) -> None:
    """Give every node its place and at least the size it needs; fit the groups."""
    nodes = {str(node["id"]): node for node in graph["nodes"]}
    heights = {id: on_grid(sizes[id][1]) for id in nodes}
    widths = {id: on_grid(sizes[id][0]) for id in nodes}
    blocks = order(graph)
    links = {(source, target) for source, target in links_of(graph) if source in nodes and target in nodes}
    columns = best_columns(blocks, widths, heights, links)
    place(graph, columns, widths, heights)


def order(graph: dict) -> list[Block]:
    """Return blocks and nodes in the order of reading: notes first, then along the links, then as they stand."""
    depths = depths_of(graph)
    nodes = {str(node["id"]): node for node in graph["nodes"]}

    def key(id: str):
        node = nodes[id]
        return not is_note(node), depths[id], *node["pos"]

    owner = {id: group_of(graph, node) for id, node in nodes.items()}
    members: dict[int | None, list[str]] = {}
    for id in sorted(nodes, key=key):
        members.setdefault(owner[id], []).append(id)

    def depth(block: Block):
        linked = [depths[id] for id in block.ids if not is_note(nodes[id])]
        return (sum(linked) / len(linked) if linked else -1, block.group is None)

    return sorted((Block(group, tuple(ids)) for group, ids in members.items()), key=depth)


def is_note(node: dict) -> bool:
    return node["type"].endswith("Note")


def group_of(graph: dict, node: dict) -> int | None:
    """Return the index of the group in which the middle of a node lies, the smallest of several."""
    x, y = node["pos"][0] + node["size"][0] / 2, node["pos"][1] + node["size"][1] / 2
    around = [
        (box.width * box.height, index)
        for index, group in enumerate(graph.get("groups", []))
        if (box := Rectangle(*group["bounding"])).left <= x <= box.right and box.top <= y <= box.bottom
    ]
    return min(around)[1] if around else None


def links_of(graph: dict) -> list[tuple[str, str]]:
    """Return (source, target) of every link, of a workflow or of a subgraph."""
    return [
        (str(link["origin_id"]), str(link["target_id"])) if isinstance(link, dict) else (str(link[1]), str(link[3]))
        for link in graph["links"]
    ]


def depths_of(graph: dict) -> dict[str, int]:
    """Return by node how many links lead to it at most; what nothing leads to stands right before its first reader."""
    ids = [str(node["id"]) for node in graph["nodes"]]
    links = [(source, target) for source, target in links_of(graph) if source in ids and target in ids]
    depths = dict.fromkeys(ids, 0)
    for _ in ids:
        for source, target in links:
            depths[target] = max(depths[target], depths[source] + 1)
    for id in ids:
        readers = [depths[target] for source, target in links if source == id]
        if readers and all(target != id for _, target in links):
            depths[id] = min(readers) - 1
    return depths


def best_columns(
    blocks: Sequence[Block], widths: Mapping[str, int], heights: Mapping[str, int], links: set[tuple[str, str]]
) -> list[tuple[int | None, list[str]]]:
    """Return the columns (group, ids) at which the graph opens largest, with few links that go down."""
    total = sum(height + TITLE + GAP_Y for height in heights.values())
    tallest = max(heights.values()) + TITLE
    best, best_score = [], (-1.0, 0.0)
    for limit in range(int(tallest), int(max(total, tallest)) + 20, 20):
        columns = [
            (block.group, column) for block in blocks for column in split(block.ids, limit, widths, heights, links)
        ]
        size = extent(columns, widths, heights)
        opens = min(zoom(Rectangle(0, 0, size[0] + 20, size[1] + 20), CANVAS), ENOUGH)
        downward = sum(1 for _, column in columns for a in column for b in column if (a, b) in links)
        score = (round(opens, 2) - 0.01 * downward, -size[0] * size[1])
        if score > best_score:
            best, best_score = columns, score
    return best


def split(
    ids: Sequence[str], limit: float, widths: Mapping[str, int], heights: Mapping[str, int], links: set[tuple[str, str]]
) -> list[list[str]]:
    """Cut a sequence into columns no taller than `limit`, of the least width; links that go down count as width."""
    cost: list[float] = [0.0] + [math.inf] * len(ids)
    start = [0] * (len(ids) + 1)
    for end in range(1, len(ids) + 1):
        for begin in range(end - 1, -1, -1):
            column = ids[begin:end]
            if column_height(column, heights) > limit and len(column) > 1:
                break
            downward = sum(1 for a in column for b in column if (a, b) in links)
            candidate = cost[begin] + max(widths[id] for id in column) + GAP_X + DOWNWARD * downward
            if candidate < cost[end]:
                cost[end], start[end] = candidate, begin
    columns, end = [], len(ids)
    while end:
        columns.insert(0, list(ids[start[end] : end]))
        end = start[end]
    return columns


def column_height(column: Sequence[str], heights: Mapping[str, int]) -> int:
    return sum(heights[id] + TITLE for id in column) + GAP_Y * (len(column) - 1)


def extent(
    columns: Sequence[tuple[int | None, Sequence[str]]], widths: Mapping[str, int], heights: Mapping[str, int]
) -> tuple[float, float]:
    """Return width and height of the nodes in these columns."""
    width = sum(max(widths[id] for id in column) for _, column in columns)
    width += sum(gap(a[0], b[0]) for a, b in zip(columns, columns[1:], strict=False))
    return width, max(column_height(column, heights) for _, column in columns)


def gap(before: int | None, after: int | None) -> int:
    """Return the room between two columns, by the groups they belong to."""
    return GAP_X if before == after else GROUP_GAP + PADDING * ((before is not None) + (after is not None))


def place(
    graph: dict,
    columns: Sequence[tuple[int | None, Sequence[str]]],
    widths: Mapping[str, int],
    heights: Mapping[str, int],
) -> None:
    """Write positions, sizes and groups."""
    nodes = {str(node["id"]): node for node in graph["nodes"]}
    drawn: dict[int, list[Rectangle]] = {}
    left, before = LEFT, None
    for index, (group, column) in enumerate(columns):
        if index:
            left += gap(before, group)
        width, top = max(widths[id] for id in column), TOP
        for id in column:
            nodes[id]["pos"] = [left, top + TITLE]
            nodes[id]["size"] = [width, heights[id]]
            if group is not None:
                drawn.setdefault(group, []).append(Rectangle(left, top, width, heights[id] + TITLE))
            top += heights[id] + TITLE + GAP_Y
        left, before = left + width, group
    for group, rectangles in drawn.items():
        x, y = min(one.left for one in rectangles) - PADDING, TOP - HEADER
        right, bottom = max(one.right for one in rectangles) + PADDING, max(one.bottom for one in rectangles) + PADDING
        graph["groups"][group]["bounding"] = [int(x), int(y), int(right - x), int(bottom - y)]


def on_grid(length: float) -> int:
    return math.ceil((length - 0.5) / GRID) * GRID
