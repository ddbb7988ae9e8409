"""Every node explains itself: tooltips, a help page, a template, texts in other languages that fit its schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mulan_nodes.tools.comfy_server import pack_name

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = {"MuLan Nodes/MuLan", "MuLan Nodes/VisionLLM", "MuLan Nodes/InternVL", "MuLan Nodes/Detections"}
# Every language writes them alike
IDENTIFIERS = {"C", "G", "bf16", "fp16", "fp32", "fp8", "int8", "int4", "cpu", "softmax"}
MODEL_NAMES = ("MuLanGetModel", "model")  # published models, by the names that the command takes
LOCALES = sorted(path.parent.name for path in (ROOT / "locales").glob("*/nodeDefs.json"))


@pytest.fixture(scope="module")
def nodes(server, comfyui_folder) -> dict[str, dict]:
    """This pack's nodes as the server describes them."""
    everything = json.loads(server.get("/object_info"))
    ours = {
        name: info
        for name, info in everything.items()
        if info["python_module"] == f"custom_nodes.{pack_name(comfyui_folder)}"
    }
    assert ours
    return ours


def inputs(info: dict) -> dict[str, dict]:
    return {
        name: (declared[1] if len(declared) > 1 else {})
        for part in ("required", "optional")
        for name, declared in info["input"].get(part, {}).items()
    }


def test_every_input_and_output_has_a_tooltip(nodes):
    for id, info in nodes.items():
        assert info["description"] and info["display_name"] and info["category"] in CATEGORIES, id
        assert not [name for name, options in inputs(info).items() if not options.get("tooltip")], id
        assert all(info["output_tooltips"]), id


def test_search_aliases_are_whole_phrases(nodes):
    """A phrase of words: a fragment such as "to mask" is what a line break inside a string leaves."""
    inner = {"to", "of", "and", "or", "by", "for", "in", "with", "the", "a", "an", "from", "on"}
    for id, info in nodes.items():
        aliases = info.get("search_aliases") or []
        assert len(aliases) >= 3 and len(aliases) == len(set(aliases)), id
        for alias in aliases:
            words = alias.split()
            assert alias == " ".join(words) and len(alias) >= 3, f"{id}: {alias!r}"
            assert not inner & {words[0].lower(), words[-1].lower()}, f"{id}: {alias!r}"


def test_help_pages_are_where_the_editor_asks_for_them(nodes, server):
    for id, info in nodes.items():
        pack = info["python_module"].split(".")[1]
        for page in (f"{id}/zh.md", f"{id}.md"):
            served = server.get(f"/extensions/{pack}/docs/{page}").decode()
            assert served == (ROOT / "web" / "docs" / page).read_text("utf-8"), page


def test_every_node_is_in_a_template_and_in_the_readme(nodes):
    templates = "".join(path.read_text("utf-8") for path in (ROOT / "workflows").glob("*.json"))
    readme = (ROOT / "README.md").read_text("utf-8")
    for id, info in nodes.items():
        assert f'"type": "{id}"' in templates, id
        assert info["display_name"] in readme and f"(web/docs/{id}.md)" in readme, id


@pytest.mark.parametrize("locale", LOCALES)
def test_a_translation_has_the_schema_s_inputs_and_outputs(locale, nodes, server):
    texts = json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text("utf-8"))
    assert texts.keys() == nodes.keys()
    for id, info in nodes.items():
        assert texts[id]["display_name"] and texts[id]["description"]
        assert texts[id]["inputs"].keys() == inputs(info).keys(), id
        assert all(text.get("tooltip") for text in texts[id]["inputs"].values()), id
        assert texts[id]["outputs"].keys() == {str(i) for i in range(len(info["output"]))}, id
    served = json.loads(server.get("/i18n"))[locale]
    assert served["nodeDefs"].keys() >= texts.keys()
    assert served["nodeCategories"]["Detections"] not in ("", "Detections")  # the other parts are names


@pytest.mark.parametrize("locale", LOCALES)
def test_a_translation_names_every_value_of_a_choice(locale, nodes):
    """web/labels.js shows `options` for values and `item` for the inputs of a growing list."""
    texts = json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text("utf-8"))
    for id, info in nodes.items():
        for name, options in inputs(info).items():
            text = texts[id]["inputs"][name]
            values = [] if (id, name) == MODEL_NAMES else options.get("options", [])
            if any(str(value).endswith(".safetensors") for value in values):  # models, folders of them, and sentences
                values = [value for value in values if " " in value]
            words = {value for value in values if not Path(value).suffix} - IDENTIFIERS
            assert text.get("options", {}).keys() == words, f"{id}: {name}"
            assert all(text.get("options", {}).values()), f"{id}: {name}"
            assert ("template" in options) == bool(text.get("item")), f"{id}: {name}"
