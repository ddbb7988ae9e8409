"""The help pages in web/docs: prose that a person writes, lists that the schemas give.

<lang>/<NodeId>.md holds the prose: Markdown without a title, with {inputs} and {outputs} on lines of their own. Title,
description and both lists come from the node's schema, in other languages from locales/<lang>/nodeDefs.json. The first
line of a translation is <!-- en XXXXXXXX -->, the first digits of the SHA-256 of the English prose it was made from.
The editor asks for docs/<NodeId>/<lang>.md, then for docs/<NodeId>.md, the English page; images of both lie in docs.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import re
from collections.abc import Iterable
from pathlib import Path

from ..comfyui import ROOT

PROSE = Path(__file__).resolve().parent
PAGES = ROOT / "web" / "docs"
LANGUAGES = ("en", "zh", "ja", "ko", "es", "fr", "ru")
WORDS = {
    # inputs, outputs, optional, default, values
    "en": ("Inputs", "Outputs", "Optional", "Default: ", "Values: "),
    "zh": ("输入", "输出", "可选", "默认：", "可选值："),
    "ja": ("入力", "出力", "任意", "既定値：", "選択肢："),
    "ko": ("입력", "출력", "선택 사항", "기본값: ", "선택지: "),
    "es": ("Entradas", "Salidas", "Opcional", "Por defecto: ", "Valores: "),
    "fr": ("Entrées", "Sorties", "Facultatif", "Par défaut\u00a0: ", "Valeurs\u00a0: "),
    "ru": ("Входы", "Выходы", "Необязательно", "По умолчанию: ", "Значения: "),
}
REPOSITORY = re.compile(r"\b(?:OpenGVLab|mulanai)/[\w.-]*\w")
REMARK = re.compile(r"- `(?P<name>[^`]+)`[ \u00a0]?(?P<colon>[:：])?(?P<text>.*\n(?:  .*\n)*)")
LONGEST = 10  # values: a longer list is read where one chooses
LARGEST = 1_000_000  # a maximum above this is no limit that a person meets
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def node_classes() -> list[type]:
    """This pack's nodes. ComfyUI's command line must have been read."""
    import mulan_nodes

    async def load() -> list[type]:
        extension = await mulan_nodes.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    return asyncio.run(load())


def pages() -> dict[Path, str]:
    """Return every help page and its text: each prose file gives one."""
    found = {}
    for language in LANGUAGES:
        locale = ROOT / "locales" / language / "nodeDefs.json"
        texts = json.loads(locale.read_text("utf-8")) if locale.is_file() else {}
        for node in node_classes():
            id = node.GET_SCHEMA().node_id
            prose = PROSE / language / f"{id}.md"
            if prose.is_file():
                path = PAGES / (f"{id}.md" if language == "en" else f"{id}/{language}.md")
                found[path] = page(node, prose.read_text("utf-8"), language, texts.get(id, {}))
    return found


def page(node: type, prose: str, language: str, texts: dict) -> str:
    """Return one page: title and description, then the prose with its lists. `texts` are a locale's of this node."""
    info, words = node.GET_NODE_INFO_V1(), WORDS[language]
    body = re.sub(r"\A<!-- en \w+ -->\n", "", prose)
    body = fill_in(body, "inputs", words[0], input_items(node, info, words, texts.get("inputs", {})))
    body = fill_in(body, "outputs", words[1], output_items(info, texts.get("outputs", {})))
    name, about = (texts.get(field, info[field]) for field in ("display_name", "description"))
    return f"# {name}\n\n{in_markdown(about)}\n\n{body.strip()}\n"


def fill_in(prose: str, marker: str, heading: str, items: dict[str, list[str]]) -> str:
    """Put a list of `items` (name -> its lines) in the marker's place. Remarks that follow, such as
    - `name`: ..., become part of their items.
    """
    if not items:
        return prose
    before, after = re.split(rf"(?m)^\{{{marker}\}}\n*", prose, maxsplit=1)
    while (remark := REMARK.match(after)) and remark["name"] in items:
        text = " ".join(remark["text"].split())
        text = text[:1].upper() + text[1:] if remark["colon"] else f"`{remark['name']}` {text}"
        about = items[remark["name"]]
        about[1] += ("" if about[1].endswith(("。", "）")) else " ") + text
        after = after[remark.end() :]
    listed = f"## {heading}\n\n" + "\n".join("- " + "<br>".join(item) for item in items.values())
    return "\n\n".join([before.rstrip("\n"), listed, after]).lstrip("\n")


def input_items(node: type, info: dict, words: tuple, texts: dict) -> dict[str, list[str]]:
    """The lines of each input, in the editor's order: name, tooltip, what it may be."""
    items = {}
    for part in ("required", "optional"):
        for key, (kind, *rest) in info["input"].get(part, {}).items():
            options, known = (rest[0] if rest else {}), texts.get(key, {})
            labels = known.get("options", {})
            values = list(labels) if key in getattr(node, "files", ()) else options.get("options", [])
            facts = value_facts(kind, options, values, words, labels)
            if part == "optional" and (kind not in WIDGETS or options.get("forceInput")):
                facts.insert(0, words[2])
            about = in_markdown(known.get("tooltip", options["tooltip"]), [*values, *labels.values()])
            items[key] = [title(key, known.get("name")), about, *([f"*{' · '.join(facts)}*"] if facts else [])]
    return items


def output_items(info: dict, texts: dict) -> dict[str, list[str]]:
    items = {}
    for index, (key, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True)):
        known = texts.get(str(index), {})
        items[key] = [title(key, known.get("name")), in_markdown(known.get("tooltip", tooltip))]
    return items


def title(key: str, name: str | None) -> str:
    return f"`{key}`" if name in (None, key) else f"**{name}** `{key}`"


def value_facts(kind: str, options: dict, values: list, words: tuple, labels: dict) -> list[str]:
    """What a widget may be: its values, where the tooltip does not name them all; its default and range. `labels` are
    what the editor shows for the values in other languages; workflows have the values.
    """
    facts = []
    if len(values) <= LONGEST and (labels or any(str(value) not in options["tooltip"] for value in values)):
        named = [
            f"{labels[value]} `{value}`" if labels.get(value, value) != value else f"`{value}`" for value in values
        ]
        facts.append(words[4] + ", ".join(named))
    default = options.get("default", values[0] if values else None)
    if kind in WIDGETS and not options.get("multiline") and default not in (None, ""):
        facts.append(words[3] + labels.get(default, f"`{shown(default)}`"))
    if kind in ("INT", "FLOAT") and options.get("max", LARGEST + 1) <= LARGEST:
        facts.append(f"{shown(options['min'])} … {shown(options['max'])}")
    return facts


def shown(value: object) -> str:
    """Return a value as the editor's widgets write it: true, 0.5, 1."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def in_markdown(text: str, values: Iterable = ()) -> str:
    """Return plain text as Markdown that shows it as it is: repositories on Hugging Face become links, and `values`
    that the text explains (value: ...) code.
    """
    text = re.sub(r"([\\*`|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
    for value in sorted(map(str, values), key=len, reverse=True):
        text = re.sub(rf"(?<![\w`]){re.escape(value)}(?=[:：])", f"`{value}`", text)
    return REPOSITORY.sub(lambda name: f"[{name[0]}](https://huggingface.co/{name[0]})", text)


def english_hash(id: str) -> str:
    """What the first line of a translation of this node's prose names: the English prose it was made from."""
    return hashlib.sha256((PROSE / "en" / f"{id}.md").read_text("utf-8").encode()).hexdigest()[:8]


def write() -> list[Path]:
    """Write every page that changed, and return those."""
    changed = []
    for path, text in pages().items():
        if not path.is_file() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8", newline="\n")
            changed.append(path)
    return changed


def stale() -> list[str]:
    """What a person has to do: prose that lacks a marker, translations of an older English prose."""
    found = []
    for prose in sorted(PROSE.glob("*/*.md")):
        name, text = prose.relative_to(PROSE).as_posix(), prose.read_text("utf-8")
        if not (PROSE / "en" / prose.name).is_file():
            found.append(f"{name}: no English prose")
        elif prose.parent.name != "en" and text.split("\n")[0] != f"<!-- en {english_hash(prose.stem)} -->":
            found.append(
                f"{name}: translate the present English prose, then let it begin with "
                f"<!-- en {english_hash(prose.stem)} -->"
            )
    return found
