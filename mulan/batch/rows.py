"""Rows as jobs: a table's values filled into a workflow, checked against every server before the first job."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..boundary.values import shown
from ..servers.workflow import Graph
from .node_inputs import NodeCatalog, NodeInput
from .placeholders import Placeholder, canonical, fill, title
from .table import TableError, TableRow

NAMESPACE = uuid.UUID("6f1c9f3e-6f4d-5c0b-9a53-0d4a1c2b7e11")  # of the prompt ids of batches
FOLDER = "mulan_batch"  # in a server's input and output folders
LANGUAGE = "language"


@dataclass(frozen=True)
class Upload:
    """A file of this machine that a server gets as `name` before the row is posted."""

    path: Path
    name: str  # below the server's input folder: its content's hash, so that every server knows it by the same


@dataclass(frozen=True)
class Row:
    """A row that can run: its values as the nodes take them, by (node, input)."""

    line: int
    id: str
    language: str
    columns: tuple[tuple[str, object], ...]  # what the table says of the columns in use
    values: tuple[tuple[tuple[str, str], object], ...]
    uploads: tuple[Upload, ...] = ()
    key: str = ""  # of the row's id and all that it is filled with: another value is another key

    def graph(self, workflow: Graph) -> Graph:
        """Return the workflow with this row's values."""
        return fill(workflow, dict(self.values), f"{FOLDER}/{self.key}")


@dataclass(frozen=True)
class BadRow:
    """A row that cannot run, and why."""

    line: int
    id: str
    problem: str


@dataclass
class Rows:
    """What a table has."""

    good: list[Row] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)


def prompt_id(key: str, attempt: int) -> str:
    """Return the id under which a server knows an attempt: the same in every run, so that it is found again."""
    return str(uuid.uuid5(NAMESPACE, f"{key} {attempt}"))


def read_rows(
    table: Iterable[TableRow],
    workflow: Graph,
    placeholders: Sequence[Placeholder],
    catalogs: Sequence[NodeCatalog],
    folder: Path,
    id_column: str = "id",
    language_column: str = LANGUAGE,
    takes: Callable[[NodeCatalog, Placeholder], bool] = lambda catalog, placeholder: True,
) -> Rows:
    """Read a table's rows, and check each against what every server takes.

    folder: where relative names of images in the table begin. takes: whether a server gets the node of a placeholder.
    Raises TableError where no row has a column.
    """
    takers = [[each for each in catalogs if takes(each, of)] or list(catalogs) for of in placeholders]
    inputs = [
        [(catalog, catalog.placeholder_input(workflow, each)) for catalog in of]
        for each, of in zip(placeholders, takers, strict=True)
    ]
    base, rows, ids = canonical(fill(workflow, {}, "")), Rows(), {}
    hashes: dict[Path, str] = {}
    seen: set[str] = set()
    for raw in table:
        seen.update(raw.values)
        name = _row_id(raw, id_column)
        try:
            if raw.problem:
                raise ValueError(raw.problem)
            if name in ids:
                raise ValueError(f"its id {shown(name)} is that of line {ids[name]}, too")
            values, uploads = [], []
            for placeholder, known in zip(placeholders, inputs, strict=True):
                value, upload = _read(raw, placeholder, known, folder, hashes, workflow)
                values.append(((placeholder.node, placeholder.input), value))
                uploads += [upload] if upload else []
        except ValueError as error:
            rows.bad.append(BadRow(raw.line, name, str(error)))
            continue
        ids[name] = raw.line
        digest = hashlib.sha256(f"{base}\n{name}\n{json.dumps(values)}".encode("utf-8", "surrogatepass"))
        columns = tuple((each.column, raw.values[each.column]) for each in placeholders)
        language = raw.values.get(language_column)
        rows.good.append(
            Row(
                raw.line,
                name,
                "" if language is None else str(language),
                columns,
                tuple(values),
                tuple(uploads),
                digest.hexdigest()[:32],
            )
        )
    _check_columns(placeholders, seen, rows)
    return rows


def _check_columns(placeholders: Sequence[Placeholder], seen: set[str], rows: Rows) -> None:
    missing = sorted({each.column for each in placeholders} - seen)
    if missing and seen:
        raise TableError(
            f"the table has no column {', '.join(map(repr, missing))}. It has {', '.join(map(repr, sorted(seen)))}."
        )
    if not rows.good and not rows.bad:
        raise TableError("the table has no rows.")


def _row_id(raw: TableRow, column: str) -> str:
    value = raw.values.get(column)
    return f"line {raw.line}" if value is None or value == "" else str(value)


def _read(
    raw: TableRow,
    placeholder: Placeholder,
    known: Sequence[tuple[NodeCatalog, NodeInput]],
    folder: Path,
    hashes: dict[Path, str],
    workflow: Graph,
) -> tuple[object, Upload | None]:
    """Return a placeholder's value as all servers take it, and the file that goes with it."""
    name = f"{placeholder.column} ({title(workflow, placeholder.node)}.{placeholder.input})"
    if placeholder.column not in raw.values:
        raise ValueError(f"it has no column {placeholder.column!r}")
    value = raw.values[placeholder.column]
    try:
        if known[0][1].takes_file and isinstance(value, str) and (file := folder / value).is_file():
            upload = Upload(file.absolute(), f"{FOLDER}/{_digest(file, hashes)}{file.suffix.lower()}")
            return upload.name, upload
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None
    read = []
    for catalog, of in known:
        try:
            read.append(of.read(value))
        except ValueError as error:
            extra = f"; and there is no file {shown(value)} in {folder}" if of.takes_file else ""
            where = f" on {catalog.server}" if of.kind == "COMBO" else ""
            raise ValueError(f"{name}: {error}{where}{extra}") from None
    return read[0], None


def _digest(file: Path, hashes: dict[Path, str]) -> str:
    if file not in hashes:
        digest = hashlib.sha256()
        with open(file, "rb") as data:
            while block := data.read(2**20):
                digest.update(block)
        hashes[file] = digest.hexdigest()[:32]
    return hashes[file]
