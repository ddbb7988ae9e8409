"""Templates in the editor: what overlaps, at which zoom a graph opens, how one is laid out."""

from __future__ import annotations

import copy
import json

import pytest
from PIL import Image

from mulan_nodes.tools.browser import stand_ins
from mulan_nodes.tools.browser.arrange import GRID, arrange
from mulan_nodes.tools.browser.campaign import WORKFLOWS
from mulan_nodes.tools.browser.geometry import TITLE, Group, Layout, Node, Rectangle, around, readable, zoom


def node(id: str, *rectangle: float) -> Node:
    return Node(id, "KSampler", id, False, Rectangle(*rectangle))


def test_rectangles_that_share_an_edge_do_not_overlap():
    layout = Layout([node("a", 0, 0, 100, 100), node("b", 100, 0, 100, 100), node("c", 150, 90, 9, 9)], [])
    assert [(a.id, b.id) for a, b in layout.overlaps()] == [("b", "c")]


def test_a_node_sticks_out_of_a_group_that_it_touches():
    group = Group("g", Rectangle(0, 0, 200, 200))
    layout = Layout([node("in", 10, 10, 50, 50), node("out", 10, 180, 50, 50), node("far", 500, 0, 5, 5)], [group])
    assert [one.id for one, _ in layout.outside()] == ["out"]


def test_zoom_is_three_quarters_of_the_canvas_by_the_longer_side():
    # measured in frontend 1.47.12 and 1.58.1: 1780 by 470 pixels of nodes, 10 pixels of margin all around
    assert zoom(Rectangle(30, 80, 1800, 490), (1600, 1000)) == pytest.approx(0.6667, abs=1e-4)
    assert zoom(Rectangle(0, 0, 100, 1500), (1600, 1000)) == 0.5
    assert readable(0.58) and not readable(0.57)


def graph(sizes: dict[int, tuple[int, int]], links: list[tuple[int, int]], groups=(), notes=()) -> dict:
    return {
        "nodes": [
            {"id": id, "type": "MarkdownNote" if id in notes else "KSampler", "pos": [id * 1000, 0], "size": list(size)}
            for id, size in sizes.items()
        ],
        "links": [[number, source, 0, target, 0, "X"] for number, (source, target) in enumerate(links, 1)],
        "groups": [{"title": "g", "bounding": list(bounding)} for bounding in groups],
    }


def drawn(document: dict) -> Layout:
    """Where an editor draws the graph whose nodes need no more than they have."""
    return Layout(
        [
            Node(
                str(one["id"]),
                one["type"],
                str(one["id"]),
                one["type"] == "MarkdownNote",
                Rectangle(one["pos"][0], one["pos"][1] - TITLE, one["size"][0], one["size"][1] + TITLE),
            )
            for one in document["nodes"]
        ],
        [Group(group["title"], Rectangle(*group["bounding"])) for group in document["groups"]],
    )


SIZES = {1: (330, 98), 2: (331, 223), 3: (340, 180), 4: (300, 264), 5: (400, 400), 6: (340, 200), 7: (300, 60)}
LINKS = [(1, 2), (2, 3), (3, 4), (4, 5), (7, 4)]


@pytest.fixture
def arranged() -> dict:
    document = graph(SIZES, LINKS, groups=[(3500, -100, 2000, 900)], notes=[6])
    arrange(document, {str(id): size for id, size in SIZES.items()})
    return document


def test_nothing_overlaps_and_nothing_sticks_out(arranged):
    layout = drawn(arranged)
    assert not layout.overlaps() and not layout.outside()
    group = layout.groups[0].rectangle
    assert {one.id for one in layout.nodes if group.holds(one.rectangle)} == {"4", "5"}


def test_every_node_has_what_it_needs_on_the_grid(arranged):
    for one in arranged["nodes"]:
        assert all(have >= need for have, need in zip(one["size"], SIZES[one["id"]], strict=True))
        assert all(value % GRID == 0 for value in [*one["pos"], *one["size"]])


def test_links_never_go_left(arranged):
    left = {one["id"]: one["pos"][0] for one in arranged["nodes"]}
    assert all(left[source] <= left[target] for source, target in LINKS)


def test_a_graph_of_seven_nodes_opens_readable(arranged):
    assert readable(zoom(around(one.rectangle for one in drawn(arranged).nodes), (1600, 1000)))


def test_a_second_time_changes_nothing(arranged):
    again = copy.deepcopy(arranged)
    arrange(again, {str(one["id"]): tuple(one["size"]) for one in again["nodes"]})
    assert json.dumps(again) == json.dumps(arranged)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Make the text encoders alone: the graphs are prepared, not run."""
    (tmp_path / "text_encoders").mkdir()
    for name, size in ((stand_ins.ENCODER, 1), (stand_ins.KEPT, 1), (stand_ins.WIDE, 2)):
        (tmp_path / "text_encoders" / name).write_bytes(bytes(size))
    monkeypatch.setattr(stand_ins, "folder", lambda: tmp_path)


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("*.json")), ids=lambda file: file.stem)
def test_a_template_is_tried_with_small_images_and_areas_within_them(models, file):
    nodes = stand_ins.all_nodes(stand_ins.prepare(stand_ins.read(file)))
    sizes = [each["widgets_values"][:2] for each in nodes if each["type"] == "EmptyLatentImage"]
    assert all(max(size) <= stand_ins.PIXART_SIDE for size in sizes)
    for each in nodes:
        if each["type"] == stand_ins.AREA:
            width, height, x, y = each["widgets_values"][:4]
            assert all(value % 8 == 0 for value in (width, height, x, y))
            assert [x + width, y + height] <= sizes[0] and width * height > 0


def test_images_to_draw_on_are_small(tmp_path):
    Image.new("RGBA", (768, 384), (9, 8, 7, 255)).save(tmp_path / "example.png")
    stand_ins.write_small_images(tmp_path)
    with Image.open(tmp_path / f"{stand_ins.SMALL}example.png") as image:
        assert image.size == (stand_ins.LARGE, stand_ins.LARGE // 2)
        assert image.getpixel((0, 0)) == (9, 8, 7, 255)
