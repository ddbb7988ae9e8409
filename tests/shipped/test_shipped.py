"""What a person gets who installs the pack from the registry, and what they can do with it at once."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from mulan_nodes import MODEL_FOLDERS
from mulan_nodes.tests.hygiene.test_documents import OF_DEVELOPERS, for_users
from mulan_nodes.tests.hygiene.tree import ROOT, python_files, shipped, syntax
from mulan_nodes.tools import graphs
from mulan_nodes.tools.api_form import as_api
from mulan_nodes.tools.comfy_server import REGISTERED as PACK
from mulan_nodes.tools.comfy_server import Outputs
from mulan_nodes.tools.emoji_world import reader
from mulan_nodes.tools.emoji_world.concepts import CHARACTERS

LARGEST = 15_000_000  # bytes of the tree, most of them tiny models
FIRST_IMAGE = 60.0  # seconds, with the models' unpacking


def test_only_what_users_need_ships(installed):
    names = {path.name for path in (installed / "custom_nodes" / PACK).iterdir()}
    assert {"__init__.py", "nodes", "mulan", "visionllm_nodes", "workflows", "locales", "web", "LICENSE"} <= names
    assert not names & {"tests", "tools", "dev.py", ".ci", ".github", "CONTRIBUTING.md", "ARCHITECTURE.md"}
    assert sum(path.stat().st_size for path in shipped()) < LARGEST


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


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ([f"custom_nodes/{PACK}/convert.py"], "--format"),
        (["-m", f"custom_nodes.{PACK}.mulan.conversion"], "--format"),
        (["-m", f"custom_nodes.{PACK}.mulan.training"], "--learning-rate"),
    ],
)
def test_the_command_lines_run_from_comfyui_s_folder(installed, command, option):
    arguments = [sys.executable, *command, "--help"]
    done = subprocess.run(arguments, cwd=installed, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and option in done.stdout, done.stderr[-3000:]
    assert Path(command[-1]).name in done.stdout and not OF_DEVELOPERS.search(done.stdout)


# --- in the server ---


def test_it_loads_from_the_tree_alone(server):
    log = server.log.read_text("utf-8", "replace")
    assert f"custom_nodes/{PACK}" in log and "IMPORT FAILED" not in log and "Traceback" not in log
    imported = [line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")]
    assert any(name.endswith(f"{PACK}.nodes.common") for name in imported), "the log names what is imported"
    assert not [name for name in imported if name.split(".")[0] == "mulan_nodes"]


def test_models_have_their_folders(server, installed):
    assert all((installed / "models" / name).is_dir() for name in MODEL_FOLDERS)


def test_every_node_is_listed(server):
    listed = {
        name for name, info in server.ask("/object_info").items() if info["python_module"] == f"custom_nodes.{PACK}"
    }
    assert listed == {path.stem for path in (ROOT / "web" / "docs").glob("[A-Z]*.md")}


def test_templates_help_and_translations_are_served(server, installed):
    folder = installed / "custom_nodes" / PACK
    templates = server.ask("/workflow_templates")[PACK]
    assert sorted(templates) == sorted(path.stem for path in (folder / "workflows").glob("*.json"))
    for file in (f"{name}.{kind}" for name in templates for kind in ("json", "jpg")):
        assert server.get(f"/api/workflow_templates/{PACK}/{quote(file)}") == (folder / "workflows" / file).read_bytes()
    for page in (folder / "web" / "docs").rglob("*"):
        if page.is_file():
            name = page.relative_to(folder / "web").as_posix()
            assert server.get(f"/extensions/{PACK}/{name}") == page.read_bytes(), name
    translations = server.ask("/i18n")
    for path in (folder / "locales").glob("*/nodeDefs.json"):
        assert translations[path.parent.name]["nodeDefs"].items() >= json.loads(path.read_text("utf-8")).items()


def run_template(server, number: int, prompt: str | None = None) -> Outputs:
    (name,) = [name for name in server.ask("/workflow_templates")[PACK] if name.startswith(f"{number:02} ")]
    graph = as_api(server.ask(f"/api/workflow_templates/{PACK}/{quote(name)}.json"), server.object_info)
    return server.run(graphs.change(graph, "Prompt", text=prompt) if prompt else graph)


def test_the_first_image_takes_no_download_and_less_than_a_minute(server, installed):
    start = time.monotonic()
    outputs = run_template(server, 1, prompt="ракета")
    assert time.monotonic() - start < FIRST_IMAGE
    (image,) = outputs.images
    assert reader.load().agrees(image[None], [CHARACTERS.index("🚀")])
    (text,) = [shown["text"][0] for shown in outputs.nodes.values() if "text" in shown]
    written = sorted(path.name for path in (installed / "models").rglob("tiny_*.safetensors"))
    assert len(written) == 11 and text.startswith("Wrote 11 files") and all(name in text for name in written)


def test_then_the_loaders_list_the_tiny_models(server):
    outputs = run_template(server, 13)
    found = "".join(str(shown.get("text")) for shown in outputs.nodes.values())
    assert outputs.images and all(
        name in found for name in ("蓝色的五角星", "roter Kreis", "cuadrado verde", "紫の三角形")
    )
