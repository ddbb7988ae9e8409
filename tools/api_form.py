"""The API form of a workflow that the editor saved: what it would post to /prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from ..mulan import VERSION
from .comfy_server import ROOT, ComfyServer

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR"}
NOTES = {"Note", "MarkdownNote"}

WORKFLOWS, BLUEPRINTS = ROOT / "workflows", ROOT / "subgraphs"

ObjectInfo = Callable[[str], dict]  # a node's class -> its entry in /object_info


def declared_inputs(info: dict, given: Iterable[str]) -> dict[str, tuple]:
    """Return name -> (type, options) in the order in which the editor keeps the widgets' values.

    A list of sockets that grows, such as masks, stands for those of it that are `given`: masks.mask0, masks.mask1,
    images.image_1. A choice that brings inputs of its own, such as sampling_mode, stands for the choice alone: no
    template makes one that does.
    """
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    order = info["input_order"].get("required", []) + info["input_order"].get("optional", [])
    declared = {}
    for name in order:
        kind, options = inputs[name][0], inputs[name][1] if len(inputs[name]) > 1 else {}
        if kind == "COMFY_AUTOGROW_V3":
            (one,) = options["template"]["input"]["required"].values()
            starts = tuple(
                f"{name}.{start}" for start in options["template"].get("names") or [options["template"]["prefix"]]
            )
            declared |= {grown: (one[0], {}) for grown in given if grown.startswith(starts)}
        elif kind == "COMFY_DYNAMICCOMBO_V3":
            declared[name] = "COMBO", {"options": [option["key"] for option in options["options"]]}
        else:
            declared[name] = kind, options
    return declared


def as_api(workflow: dict, object_info: ObjectInfo) -> dict:
    """Return a workflow without subgraphs in API form.

    Raises ValueError for a node whose widget values do not fit its inputs, and for one that is bypassed.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        if node["mode"]:
            raise ValueError(f"{node['type']} is bypassed or muted")
        info = object_info(node["type"])
        linked = {given["name"]: sources[given["link"]] for given in node["inputs"] if given["link"] is not None}
        values, inputs = list(node["widgets_values"]), {}
        for name, (kind, options) in declared_inputs(info, linked).items():
            if _is_widget(kind, options):
                inputs[name] = values.pop(0) if values else options["default"]  # saved before the input was added
                if options.get("control_after_generate") and values.pop(0) != "fixed":
                    raise ValueError(f"{node['type']}.{name}: control after generate is not fixed")
                if options.get("image_upload"):
                    values.pop(0)  # the button
            if name in linked:
                inputs[name] = linked[name]
        if values:
            raise ValueError(f"{node['type']} has {len(values)} widget values too many")
        graph[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title", info["display_name"])},
        }
    return graph


def _is_widget(kind, options: dict) -> bool:
    return (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput")


def write_all(comfyui: Path) -> None:
    """Write the API form of every template, and the pack's version into our nodes there and in the blueprints."""
    for path in [*WORKFLOWS.glob("*.json"), *BLUEPRINTS.glob("*.json")]:
        document = json.loads(path.read_text("utf-8"))
        _stamp(document)
        _write(path, document)
    with ComfyServer(comfyui, cpu=True) as server:
        forms = {
            path.name: as_api(json.loads(path.read_text("utf-8")), server.object_info)
            for path in WORKFLOWS.glob("*.json")
        }
    for path in (WORKFLOWS / "api").glob("*.json"):
        path.unlink()
    for name, form in forms.items():
        _write(WORKFLOWS / "api" / name, form)


def _stamp(part) -> None:
    if isinstance(part, dict):
        if part.get("cnr_id") == "mulan-nodes":
            part["ver"] = VERSION
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            _stamp(each)


def _write(path: Path, document: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", "utf-8")
