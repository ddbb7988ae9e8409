"""Every text belongs to the person who reads it: links lead somewhere, commands exist, in the tree that this reader
has.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mulan_nodes.tests.hygiene.tree import ROOT, build_shipped, python_files, shipped, syntax

DEVELOPER = "## For developers"  # the README's section for a clone of the repository
OF_DEVELOPERS = re.compile(r"\bdev\.py\b|\btests/|\btools/|\.venv\b|\.comfyui\b|CONTRIBUTING\.md|ARCHITECTURE\.md")
DOCS = ROOT / "web" / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def for_users(path: Path) -> str:
    """A document's text without the README's part for developers."""
    return path.read_text("utf-8").split(DEVELOPER)[0]


def shipped_texts() -> dict[str, str]:
    """Everything that a person who installs may read: documents, locales, templates and the strings of the code."""
    texts = {
        path.relative_to(ROOT).as_posix(): for_users(path)
        for path in shipped()
        if path.suffix in (".md", ".json", ".txt")
    }
    for path in python_files(shipped()):
        strings = [
            node.value
            for node in ast.walk(syntax(path))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        texts[path.relative_to(ROOT).as_posix()] = "\n".join(strings)
    return texts


def test_no_text_for_users_names_a_file_of_developers():
    found = [f"{name}: {match[0]}" for name, text in shipped_texts().items() for match in OF_DEVELOPERS.finditer(text)]
    assert not found


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
    assert 0 < text.index("have not been run") < text.index("hf download")


# --- the tree that ships, in ComfyUI's own Python ---


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder like ComfyUI's with custom_nodes/mulan-nodes, as ComfyUI Manager makes it."""
    folder = tmp_path_factory.mktemp("ComfyUI")
    build_shipped(folder)
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


def test_only_what_users_need_ships(installed):
    names = {path.name for path in (installed / "custom_nodes" / "mulan-nodes").iterdir()}
    assert {
        "__init__.py",
        "nodes",
        "mulan",
        "visionllm_nodes",
        "workflows",
        "locales",
        "web",
        "README.md",
        "LICENSE",
    } <= names
    assert not names & {"tests", "tools", "dev.py", ".ci", ".github", "CONTRIBUTING.md", "ARCHITECTURE.md"}


def test_the_shipped_tree_gives_every_node(installed):
    code = """
        import asyncio, importlib, json, sys
        from mulan_nodes.tools.comfyui import open_comfyui
        open_comfyui("--cpu")
        pack = importlib.import_module("custom_nodes.mulan-nodes")
        async def load():
            extension = await pack.comfy_entrypoint()
            await extension.on_load()
            return [node.GET_SCHEMA().node_id for node in await extension.get_node_list()]
        nodes = asyncio.run(load())
        files = sorted({m.__file__ for n, m in sys.modules.items() if n.startswith("custom_nodes.mulan-nodes.")})
        print(json.dumps([nodes, files]))
    """
    lines = [line[8:] for line in code.splitlines()]
    done = python(installed, "-c", "\n".join(lines))
    assert done.returncode == 0, done.stderr[-3000:]
    nodes, files = json.loads(done.stdout.splitlines()[-1])
    pages = {path.stem for path in (ROOT / "web" / "docs").glob("[A-Z]*.md")}
    assert set(nodes) == pages and len(nodes) == len(set(nodes))
    assert files and all(str(installed) in file for file in files)


@pytest.mark.parametrize(
    ("command", "option"), [("mulan.conversion", "--format"), ("mulan.training", "--learning-rate")]
)
def test_the_command_lines_run_from_comfyui_s_folder(installed, command, option):
    done = python(installed, "-m", f"custom_nodes.mulan-nodes.{command}", "--help")
    assert done.returncode == 0 and option in done.stdout, done.stderr[-3000:]
    assert f"custom_nodes.mulan-nodes.{command}" in done.stdout and not OF_DEVELOPERS.search(done.stdout)
