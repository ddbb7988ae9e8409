"""What ships holds nothing the registry flags, points one way, and is described as it is."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGGED = re.compile(r"subprocess|os\.environ|urllib|\beval\b|\bexec\b|pickle")
LARGEST = 5 * 2**20


def tracked() -> list[Path]:
    """The repository's files; outside a git checkout, whatever is not in .gitignore's folders."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def shipped() -> list[Path]:
    patterns = [
        line.rstrip("/")
        for line in (ROOT / ".comfyignore").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    return [
        path
        for path in tracked()
        if not any(
            fnmatch.fnmatch(part, pattern)
            for part in (path.relative_to(ROOT).parts[0], path.name)
            for pattern in patterns
        )
    ]


def imports(path: Path) -> set[str]:
    """The modules a file imports; relative ones with their dots."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def test_shipped_code_has_nothing_the_registry_flags():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in shipped()
        if path.suffix in (".py", ".js")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if FLAGGED.search(line)
    ]
    assert not found


def test_tests_and_dev_are_not_shipped():
    names = {path.relative_to(ROOT).parts[0] for path in shipped()}
    assert (
        not names & {"tests", "dev.py", ".ci"}
        and {"__init__.py", "nodes", "mulan", "visionllm_nodes", "workflows", "web", "LICENSE"} <= names
    )


def test_the_library_never_reaches_for_the_server_or_a_node():
    libraries = ("mulan", "visionllm_nodes/model", "visionllm_nodes/detections")
    for path in [path for folder in libraries for path in (ROOT / folder).rglob("*.py")]:
        outward = {
            name
            for name in imports(path)
            if name.split(".")[0] in ("folder_paths", "server", "nodes", "execution") or "nodes" in name.split(".")
        }
        assert not outward, path


def test_importing_touches_nothing():
    """No import of shipped code reaches heavy or optional packages before they are needed."""
    late = {"diffusers", "transformers", "accelerate"}
    for path in shipped():
        if path.suffix != ".py":
            continue
        top = [
            node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {
            (node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom) and not node.level
        }
        if "tinyworld" not in path.parts:  # training only, never imported by a node
            assert not names & late, path


def test_the_door_is_small():
    assert (ROOT / "__init__.py").stat().st_size < 2048


def test_no_large_files():
    assert not [path for path in tracked() if path.stat().st_size > LARGEST]


def test_versions_agree():
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)[1]
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[1] == version


def test_requirements_agree():
    listed = [
        line
        for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    declared = re.search(r"^dependencies = (\[.*?\])", (ROOT / "pyproject.toml").read_text("utf-8"), re.M | re.S)[1]
    assert json.loads(declared) == listed


@pytest.mark.parametrize(
    "document", ["README.md", "CHANGELOG.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "web" / "docs").glob("*.md"))]
)
def test_pictures_and_files_that_documents_point_to_exist(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
        assert target.startswith("http") or (path.parent / target).exists(), target


def test_every_command_of_the_readme_exists():
    commands = set(re.findall(r"dev\.py ([a-z][a-z-]+)", (ROOT / "README.md").read_text("utf-8")))
    known = set(re.findall(r'^    "([a-z-]+)": \(run_', (ROOT / "dev.py").read_text("utf-8"), re.M))
    assert {"demo", "test"} <= commands <= known
