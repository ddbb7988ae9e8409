"""Help pages are generated: what is committed is what prose, schemas and locales give today."""

from __future__ import annotations

import re

import pytest

from mulan_nodes.tools import help_pages

COMMAND = "run: python dev.py help-pages"


@pytest.fixture(scope="module")
def nodes() -> set[str]:
    return {node.GET_SCHEMA().node_id for node in help_pages.node_classes()}


def languages_prose(language: str) -> set[str]:
    return {path.stem for path in (help_pages.PROSE / language).glob("*.md")}


def test_committed_pages_are_the_generated_ones():
    generated = help_pages.pages()
    committed = {
        path
        for path in help_pages.PAGES.rglob("*.md")
        if path.name not in ("measured.md", "languages.md", "training.md", "batch.md")
    }
    assert committed == generated.keys(), COMMAND
    assert not [path for path, text in generated.items() if path.read_text("utf-8") != text], COMMAND


def test_every_node_has_english_prose(nodes):
    assert languages_prose("en") == nodes


def test_prose_has_a_place_for_each_list():
    for node in help_pages.node_classes():
        schema = node.GET_SCHEMA()
        places = [place for place, has in (("{inputs}", schema.inputs), ("{outputs}", schema.outputs)) if has]
        for prose in help_pages.PROSE.glob(f"*/{schema.node_id}.md"):
            text = prose.read_text("utf-8")
            assert re.findall(r"(?m)^\{\w+\}$", text) == places, prose
            assert not re.search(r"(?m)^# ", re.sub(r"(?s)```.*?```", "", text)), f"{prose}: the title is generated"


def test_translations_are_of_the_present_english_prose():
    assert not help_pages.stale()


@pytest.mark.parametrize("language", [language for language in help_pages.LANGUAGES if language != "en"])
def test_a_language_has_every_page(language, nodes):
    assert languages_prose(language) == nodes
