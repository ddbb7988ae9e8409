"""Every text belongs to the person who reads it: links lead somewhere, commands exist, in the tree that this reader
has.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mulan_nodes.tests.hygiene.tree import ROOT, shipped

DEVELOPER = "## For developers"  # the README's section for a clone of the repository
OF_DEVELOPERS = re.compile(r"\bdev\.py\b|\btests/|\btools/|\.venv\b|\.comfyui\b|CONTRIBUTING\.md|ARCHITECTURE\.md")
DOCS = ROOT / "web" / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def for_users(path: Path) -> str:
    """A document's text without the README's part for developers."""
    return path.read_text("utf-8").split(DEVELOPER)[0]


@pytest.mark.parametrize("document", [path.relative_to(ROOT).as_posix() for path in DOCUMENTS])
def test_links_lead_somewhere(document):
    path = ROOT / document
    exist = set(shipped()) if path in shipped() else None
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        # the editor looks for a help page's images beside the English pages
        file = ((DOCS if path.is_relative_to(DOCS) else path.parent) / target).resolve()
        there = (
            file in exist or any(other.is_relative_to(file) for other in exist) if exist is not None else file.exists()
        )
        assert there, f"{document} links to {target}, which its reader does not have"


@pytest.mark.parametrize("document", [path.relative_to(ROOT).as_posix() for path in DOCUMENTS])
def test_commands_exist(document):
    text = (ROOT / document).read_text("utf-8")
    commands = {path.stem.replace("_", "-") for path in (ROOT / "tools" / "commands").glob("[a-z]*.py")}
    assert set(re.findall(r"(?:python3?(?:\.exe)? )dev\.py ([a-z][a-z-]*)", text)) <= commands
    for module in re.findall(r"-m custom_nodes\.[\w-]+\.([\w.]+)", text):
        assert (ROOT / module.replace(".", "/") / "__main__.py") in shipped(), f"{document}: {module}"


def test_the_readme_names_a_developer_s_two_commands():
    part = (ROOT / "README.md").read_text("utf-8").split(DEVELOPER)[1]
    assert "python dev.py demo" in part and "python dev.py test" in part


def test_the_readme_says_what_was_not_run_before_anything_is_downloaded():
    text = (ROOT / "README.md").read_text("utf-8")
    assert 0 < text.index("have not been run") < text.index("## Real models")
