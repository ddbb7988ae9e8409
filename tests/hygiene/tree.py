"""The repository as two readers see it: the developer's files, and the tree that the registry ships."""

from __future__ import annotations

import ast
import fnmatch
import shutil
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def tracked() -> tuple[Path, ...]:
    """The repository's files: tracked ones, and new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


@cache
def shipped() -> tuple[Path, ...]:
    """What .comfyignore leaves."""
    lines = (ROOT / ".comfyignore").read_text("utf-8").splitlines()
    patterns = [line.rstrip("/") for line in lines if line and not line.startswith("#")]

    def is_ignored(path: Path) -> bool:
        names = (path.relative_to(ROOT).parts[0], path.name)
        return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns)

    return tuple(path for path in tracked() if not is_ignored(path))


def build_shipped(folder: Path) -> Path:
    """Copy the shipped tree to `folder`/custom_nodes/mulan-nodes, as the Manager installs it; return that folder."""
    target = folder / "custom_nodes" / "mulan-nodes"
    for path in shipped():
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return target


def python_files(paths=None) -> list[Path]:
    return [path for path in (tracked() if paths is None else paths) if path.suffix == ".py"]


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def module_name(path: Path) -> str:
    """Dotted, from the repository's root: `mulan.images.fonts`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in python_files()}


@cache
def own_imports(path: Path) -> frozenset[str]:
    """The repository's modules that a file imports, also inside functions and for type checkers."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(syntax(path)):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
        elif node.module and node.module.split(".")[0] == "mulan_nodes":
            base = node.module.split(".")[1:]
        else:
            continue
        name = ".".join(part for part in base if part)
        for candidate in (name, *(f"{name}.{alias.name}".lstrip(".") for alias in node.names)):
            if candidate in modules():
                found.add(candidate)
    return frozenset(found)


def foreign_imports(path: Path) -> set[str]:
    """Top-level names of the packages outside the repository that a file imports."""
    names = set()
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names - {"mulan_nodes", "__future__"}
