"""What a finished run shows: scores by language, and a contact sheet of each language."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw

from ..boundary.files import WholeFile, write_text
from ..images.text_drawing import TextRenderer
from ..servers.workflow import Graph
from .journal import Journal
from .placeholders import title

SHEETS, SUMMARY = "sheets", "summary.md"
COLUMNS, ROWS = 8, 12  # of images on a sheet
CELL, GAP, MARGIN, CAPTION, HEAD = 160, 10, 24, 22, 56
PAPER, INK, QUIET = (255, 255, 255), (28, 30, 34), (110, 114, 122)
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
MAX_SCORES = 12  # columns of the summary
NO_LANGUAGE = "all"
_NAME = re.compile(r"[^\w.-]+")


@dataclass
class _Language:
    rows: int = 0
    files: int = 0
    seconds: float = 0.0
    scores: dict[str, list[float]] = field(default_factory=dict)  # name -> [sum, count]
    images: list[tuple[Path, str]] = field(default_factory=list)  # file, caption: those of the sheet


def write_report(journal: Journal, workflow: Graph, keys: Container[str]) -> list[str]:
    """Write the summary and the sheets into the journal's folder; return lines for a person."""
    languages: dict[str, _Language] = {}
    for record in journal.records(keys):
        of = languages.setdefault(record["language"] or NO_LANGUAGE, _Language())
        of.rows += 1
        of.files += len(record["files"])
        of.seconds += record["seconds"]
        for name, score in _scores(record, workflow):
            total = of.scores.setdefault(name, [0.0, 0])
            total[0] += score
            total[1] += 1
        for file in record["files"]:
            if len(of.images) < COLUMNS * ROWS and Path(file["name"]).suffix in IMAGES:
                of.images.append((journal.folder / file["name"], _caption(record)))
    if not languages:
        return []
    table = _table(languages)
    write_text(journal.folder / SUMMARY, table)
    sheets = 0
    for name, of in languages.items():
        if of.images:
            (journal.folder / SHEETS).mkdir(exist_ok=True)
            _write_sheet(journal.folder / SHEETS / f"{_NAME.sub('_', name)[:80]}.jpg", name, of)
            sheets += 1
    notes = [table.rstrip()] if len(languages) <= 30 else []
    notes.append(f"{journal.folder / SUMMARY}")
    if sheets:
        notes.append(f"{sheets} contact sheet(s) in {journal.folder / SHEETS}")
    return notes


def _table(languages: dict[str, _Language]) -> str:
    names = list(dict.fromkeys(name for of in languages.values() for name in of.scores))[:MAX_SCORES]
    lines = [
        "| language | rows | files | seconds per row | " + "".join(f"{name} | " for name in names),
        "| --- | --: | --: | --: | " + "--: | " * len(names),
    ]
    for language, of in sorted(languages.items()):
        means = [f"{of.scores[name][0] / of.scores[name][1]:.4g}" if name in of.scores else "" for name in names]
        cells = [language, str(of.rows), str(of.files), f"{of.seconds / of.rows:.2f}", *means]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _scores(record: dict, workflow: Graph) -> Iterator[tuple[str, float]]:
    """Yield the numbers that nodes showed: a text that is a number, or fields of a JSON document."""
    for node, texts in record.get("texts", {}).items():
        name = title(workflow, node) if node in workflow else node
        for text in texts:
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                continue
            for path, score in _numbers(value):
                yield (f"{name} {path}".strip(), score)


def _numbers(value, path: str = "", depth: int = 0) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a document; of a list only the first, which is the best one in ours."""
    if isinstance(value, bool) or depth > 8:
        return
    if isinstance(value, (int, float)):
        yield path, float(value)
    elif isinstance(value, list) and value:
        yield from _numbers(value[0], path, depth + 1)
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _numbers(part, f"{path}.{name}" if path else str(name), depth + 1)


def _caption(record: dict) -> str:
    texts = [value for value in record["columns"].values() if isinstance(value, str)]
    return max(texts, key=len, default=record["id"])


def _write_sheet(target: Path, name: str, of: _Language) -> None:
    """Draw the first images of a language with their prompts below."""
    columns = min(COLUMNS, len(of.images))
    rows = -(-len(of.images) // columns)
    size = (2 * MARGIN + columns * (CELL + GAP) - GAP, 2 * MARGIN + HEAD + rows * (CELL + CAPTION + GAP))
    sheet = Image.new("RGB", size, PAPER)
    writer = TextRenderer(sample=" ".join(caption for _, caption in of.images))
    shown = len(of.images)
    more = f"the first {shown} of {of.files} files" if shown < of.files else f"{shown} images"
    end = writer.draw(sheet, MARGIN, MARGIN + 24, name, 26, INK)
    writer.draw(sheet, MARGIN + end + 16, MARGIN + 24, more, 16, QUIET)
    pen = ImageDraw.Draw(sheet)
    for place, (file, caption) in enumerate(of.images):
        left = MARGIN + place % columns * (CELL + GAP)
        top = MARGIN + HEAD + place // columns * (CELL + CAPTION + GAP)
        try:
            with Image.open(file) as image:
                image.thumbnail((CELL, CELL))
                small = image.convert("RGB")
            if max(small.size) < CELL:
                factor = CELL / max(small.size)
                small = small.resize((round(small.width * factor), round(small.height * factor)))
            sheet.paste(small, (left + (CELL - small.width) // 2, top + (CELL - small.height) // 2))
        except OSError:
            pen.rectangle((left, top, left + CELL, top + CELL), outline=QUIET)
        writer.draw(sheet, left, top + CELL + 16, writer.shorten(caption, 13, CELL), 13, QUIET)
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=88)
    with WholeFile(target) as output:
        output.write(data.getvalue())
