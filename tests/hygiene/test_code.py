"""Rules of the code that tools can check: style, types, layers, imports, Python versions."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

from mulan_nodes import dev
from mulan_nodes.tests.hygiene.tree import (
    ROOT,
    foreign_imports,
    module_name,
    modules,
    own_imports,
    python_files,
    shipped,
    syntax,
    tracked,
)

FLAGGED = re.compile(r"subprocess|os\.environ|urllib|\beval\b|\bexec\b|pickle")
LARGEST = 5 * 2**20
# Bottom to top: a file imports from its own layer's folder and from layers below it, never from above.
LAYERS = (
    ("mulan/__init__.py",),
    ("mulan/boundary",),
    ("mulan/checkpoints", "mulan/images", "mulan/servers"),
    ("mulan/conditioning", "mulan/tiny_models"),
    ("mulan/internvl",),
    ("mulan/internvl_chat",),
    ("visionllm_nodes/detections",),
    ("visionllm_nodes/model",),
    ("mulan/conversion", "mulan/training", "mulan/batch"),
    ("nodes",),
    ("visionllm_nodes",),
    ("",),
)
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "server",
    "nodes",
    "execution",
    "comfyui_version",
    "utils",
}
PROGRAMS = {"ballast", "torch_npu", "comfy_aimdo"}  # run, or imported, by their path in a process of their own
LAZY = {"diffusers", "transformers", "accelerate"}  # the trainer's
BATCH = {"ray", "pyarrow", "aiohttp"}  # of batches and of their client: pyproject.toml's extra


def run(*command) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)


def test_ruff_finds_nothing():
    checked = run(sys.executable, "-m", "ruff", "check", "--output-format", "concise", ".")
    assert checked.returncode == 0, checked.stdout[-4000:] + checked.stderr


def test_the_formatter_would_change_nothing():
    checked = run(sys.executable, "-m", "ruff", "format", "--check", ".")
    assert checked.returncode == 0, checked.stdout[-4000:] + checked.stderr


def test_pyright_finds_nothing():
    checked = run(sys.executable, "-m", "pyright", "--outputjson")
    report = json.loads(checked.stdout)
    errors = [
        f"{Path(found['file']).relative_to(ROOT)}:{found['range']['start']['line'] + 1}: {found['message']}"
        for found in report["generalDiagnostics"]
        if found["severity"] == "error"
    ]
    assert report["summary"]["filesAnalyzed"] > 200 and not errors, "\n".join(errors)


def layer_of(path: Path) -> int | None:
    """The index of the layer that a shipped file belongs to; the nodes in visionllm_nodes/detections belong to the
    nodes' layer.
    """
    name = path.relative_to(ROOT).as_posix()
    if name.startswith("visionllm_nodes/detections/nodes_"):
        return LAYERS.index(("visionllm_nodes",))
    folders = [
        (len(folder), index) for index, layer in enumerate(LAYERS) for folder in layer if name.startswith(folder)
    ]
    return max(folders)[1] if folders else None


def test_imports_point_down():
    upward = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files(shipped())
        for name in own_imports(path)
        if layer_of(modules()[name]) > layer_of(path)
    ]
    assert not upward


def test_the_layers_of_one_height_do_not_know_each_other():
    def folder(path: Path) -> str:
        return next(
            (name for layer in LAYERS for name in layer if len(layer) > 1 and path.is_relative_to(ROOT / name)), ""
        )

    sideways = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files(shipped())
        for name in own_imports(path)
        if folder(path) and folder(modules()[name]) != folder(path) and layer_of(modules()[name]) == layer_of(path)
    ]
    assert not sideways


def test_no_modules_import_each_other_in_a_circle():
    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle of imports: {' -> '.join((*trail, name))}"
        if name in done:
            return
        for other in sorted(own_imports(modules()[name]) - {name}):
            if not modules()[other].name == "__init__.py":
                visit(other, (*trail, name))
        done.add(name)

    done: set[str] = set()
    for path in python_files(shipped()):
        visit(module_name(path), ())


def test_the_library_never_reaches_for_the_server_or_a_node():
    nodes = LAYERS.index(("nodes",))
    for path in python_files(shipped()):
        if layer_of(path) < nodes:
            assert not foreign_imports(path) & {"folder_paths", "server", "nodes", "execution"}, path


def test_importing_is_light():
    """No shipped file imports at its top what only the trainer needs, and the door imports nothing of ComfyUI."""
    for path in python_files(shipped()):
        top = [node for node in syntax(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {
            (node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom) and not node.level
        }
        assert not names & (LAZY | BATCH - {"aiohttp"}), path
        assert path != ROOT / "__init__.py" or names == {"os", "contextlib"}


def test_every_module_is_used():
    """Each module is reached from what ComfyUI, a command line, dev.py or a test starts with."""
    entries = [path for path in python_files() if is_entry(path)]
    reached, waiting = set(), [module_name(path) for path in entries]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        parents = [".".join(name.split(".")[:index]) for index in range(1, name.count(".") + 1)]
        waiting += [*own_imports(modules()[name]), *(parent for parent in parents if parent in modules())]
    assert not sorted(modules().keys() - reached)


def test_every_shipped_module_is_used_by_shipped_code():
    programs = [path for path in python_files(shipped()) if path.name == "__main__.py"]
    entries = [ROOT / "__init__.py", ROOT / "convert.py", *programs]
    reached, waiting = set(), [module_name(path) for path in entries]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += own_imports(modules()[name])
    unused = [
        path for path in python_files(shipped()) if module_name(path) not in reached and path.name != "__init__.py"
    ]
    assert not unused


def is_entry(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    if parts in (("__init__.py",), ("dev.py",)) or parts[:2] == ("tools", "commands") or path.name == "__main__.py":
        return True
    if parts[0] == "tests" and (
        path.name.startswith("test_") or path.name == "conftest.py" or parts[1] == "custom_nodes"
    ):
        return True
    if parts[:3] == ("tools", "soak", "nodes"):  # custom nodes of the soak's server
        return True
    if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in syntax(path).body):
        return True
    return path.stem in PROGRAMS


def test_shipped_code_has_nothing_the_registry_flags():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in shipped()
        if path.suffix in (".py", ".js")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if FLAGGED.search(line)
    ]
    assert not found


def requirement_name(line: str) -> str:
    return re.split(r"[<>=!~ \[]", line)[0].lower().replace("_", "-")


def test_requirements_are_what_shipped_code_imports():
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    declared = re.search(r"^dependencies = (\[.*?\])", (ROOT / "pyproject.toml").read_text("utf-8"), re.M | re.S)[1]
    assert json.loads(re.sub(r",\s*\]", "]", declared)) == listed

    # importlib.metadata.packages_distributions misses packages without top_level.txt on Python 3.10
    distributions = {
        file.parts[0].removesuffix(".py"): distribution.metadata["Name"]
        for distribution in importlib.metadata.distributions()
        for file in distribution.files or ()
    }
    names = set().union(*(foreign_imports(path) for path in python_files(shipped())))
    extra = re.search(r"^batch = (\[.*?\])", (ROOT / "pyproject.toml").read_text("utf-8"), re.M | re.S)[1]
    assert {requirement_name(line) for line in json.loads(extra)} == BATCH
    folders = [ROOT / "mulan" / "batch", ROOT / "mulan" / "servers"]
    batch = [path for path in python_files(shipped()) if any(path.is_relative_to(folder) for folder in folders)]
    assert set().union(*(foreign_imports(path) for path in batch)) >= BATCH
    assert not [path for path in python_files(shipped()) if path not in batch and foreign_imports(path) & BATCH]
    outside = names - set(sys.stdlib_module_names) - COMFYUI - LAZY - BATCH
    needed = {distributions[name].lower().replace("_", "-") for name in outside}
    assert needed == {requirement_name(line) for line in listed}


def test_the_supported_pythons_are_told_once():
    """dev.py says which they are; everything else agrees."""
    (_, oldest), (_, newest) = dev.PYTHONS
    supported = [f"3.{minor}" for minor in range(oldest, newest + 1)]
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', pyproject) == supported
    assert f'requires-python = ">={supported[0]}"' in pyproject
    assert f'target-version = "py3{oldest}"' in pyproject and f'pythonVersion = "3.{oldest}"' in pyproject
    matrix = (ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8")
    assert sorted(set(re.findall(r'"(3\.\d+)"', matrix)), key=lambda v: int(v[2:])) == supported
    assert f"Python {supported[0]} to {supported[-1]}" in (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert f"sys.version_info < (3, {oldest})" in (ROOT / "dev.py").read_text("utf-8")


def test_the_door_is_under_2_kb():
    assert (ROOT / "__init__.py").stat().st_size < 2048


def test_no_large_files():
    assert not [path for path in tracked() if path.stat().st_size > LARGEST]


def test_versions_agree():
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)[1]
    assert re.search(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[1] == version
    assert f'VERSION = "{version}"' in (ROOT / "mulan" / "__init__.py").read_text("utf-8")
