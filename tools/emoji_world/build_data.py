"""Makes the emoji world's files from what they come from: names from Unicode CLDR, pictures from Noto Emoji.

    python -m mulan_nodes.tools.emoji_world.build_data ANNOTATIONS LOCALENAMES NOTO --chromium /usr/bin/chromium

The folders are the unpacked npm packages cldr-annotations-full and cldr-localenames-full (48.2.0) and
@iconify-json/noto (1.2.9). Needs Playwright and a Chromium, which draws the pictures. `concepts.py` reads the files.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import lzma
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .concepts import CHARACTERS, COLUMNS, HELD_OUT_LANGUAGES, NAMES, PICTURE_SIDE, PICTURES
from .spoiled import OTHER_CHARACTERS, OTHERS, OTHERS_COLUMNS, OTHERS_SIDE

COMPLETE = 1000  # names in a locale that has vetted most of them
VARIANTS = {"kk-Arab", "pa-Arab", "pt-PT", "sr-Latn", "yo-BJ", "yue-Hans", "zh-Hant"}  # of languages that are there
INCOMPLETE = {"sc", "kl"}  # without many names, or with those of another language
SHARED = 3  # concepts that a keyword may describe before it says too little


def main() -> int:
    """Writes all three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("annotations", "localenames", "noto"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--chromium", help="the browser's program (default: Playwright's own)")
    arguments = parser.parse_args()
    table = names_of(arguments.annotations, arguments.localenames)
    NAMES.write_bytes(lzma.compress(json.dumps(table, ensure_ascii=False, indent=0).encode()))
    PICTURES.write_bytes(draw_sheet(arguments.noto, arguments.chromium, CHARACTERS, PICTURE_SIDE, COLUMNS))
    others = draw_sheet(arguments.noto, arguments.chromium, OTHER_CHARACTERS, OTHERS_SIDE, OTHERS_COLUMNS)
    Image.open(io.BytesIO(others)).save(OTHERS, quality=80, alpha_quality=60, method=6)
    return 0


def names_of(package: Path, localenames: Path) -> dict[str, dict]:
    """Per language its English "name" and its "own_name" and, in the order of `CHARACTERS`, "names", null where there
    is none, and "keywords", lists.
    """
    languages, english = {}, _language_names(localenames, "en")
    for file in sorted(package.glob("annotations/*/annotations.json")):
        entries = json.loads(file.read_bytes())["annotations"].get("annotations", {})
        code = file.parent.name
        if code not in VARIANTS | INCOMPLETE and sum("tts" in entry for entry in entries.values()) > COMPLETE:
            called = {"name": english[code], "own_name": _language_names(localenames, code)[code]}
            of_things = _of_language(code, [entries.get(c) or entries.get(c + "\ufe0f") for c in CHARACTERS])
            languages[code] = called | of_things
    missing = {"en", *HELD_OUT_LANGUAGES} - set(languages)
    if missing:
        raise ValueError(f"{package} has no complete annotations in {', '.join(sorted(missing))}")
    return languages


def _language_names(package: Path, code: str) -> dict[str, str]:
    """What the languages are called in one of them."""
    content = json.loads((package / "main" / code / "languages.json").read_bytes())
    return content["main"][code]["localeDisplayNames"]["languages"]


def _of_language(code: str, entries: list[dict | None]) -> dict[str, list]:
    def texts(entry, kind):
        return [unicodedata.normalize("NFC", text).strip() for text in (entry or {}).get(kind, ())]

    names = [next(iter(texts(entry, "tts")), None) for entry in entries]
    by_name = {name.casefold(): place for place, name in enumerate(names) if name}
    if len(by_name) != sum(name is not None for name in names):
        raise ValueError(f"two of the things have one name in {code}")
    keywords = [dict.fromkeys(texts(entry, "default")) for entry in entries]
    described = collections.Counter(word.casefold() for words in keywords for word in words)
    telling = [
        [
            word
            for word in words
            if described[word.casefold()] <= SHARED and by_name.get(word.casefold(), place) == place
        ]
        for place, words in enumerate(keywords)
    ]
    return {"names": names, "keywords": telling}


def draw_sheet(package: Path, chromium: str | None, drawn: Sequence[str], side: int, columns: int) -> bytes:
    """Draw these emoji, `side` pixels each, transparent around, in one sheet: a PNG file."""
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    icons, characters = (json.loads((package / name).read_bytes()) for name in ("icons.json", "chars.json"))

    def svg(character: str) -> str:
        code = "-".join(f"{ord(part):x}" for part in character)
        name = characters.get(code) or characters[f"{code}-fe0f"]
        icon = icons["icons"][icons["aliases"].get(name, {}).get("parent", name)]
        box = f"0 0 {icon.get('width', icons['width'])} {icon.get('height', icons['height'])}"
        return f'<svg width="{side}" height="{side}" viewBox="{box}">{icon["body"]}</svg>'

    grid = f"display:grid;grid-template-columns:repeat({columns},{side}px)"
    page_text = f'<body style="margin:0"><div style="{grid}">{"".join(map(svg, drawn))}</div>'
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        page = browser.new_page(viewport={"width": columns * side, "height": math.ceil(len(drawn) / columns) * side})
        page.set_content(page_text)
        sheet = page.screenshot(omit_background=True)
        browser.close()
    return sheet


if __name__ == "__main__":
    raise SystemExit(main())
