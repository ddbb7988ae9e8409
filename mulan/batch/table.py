"""Tables of prompts: CSV, JSONL and Parquet, row by row; a row that cannot be read is reported and does not stop the
others.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..boundary.files import parse_json
from ..boundary.texts import whole_characters

Values = dict[str, object]

DELIMITERS = ",;\t"
MAX_CELL = 2**20  # characters of one cell of a CSV file
MAX_LINE = 2**24  # bytes of one line of a JSONL file
_BATCH = 256  # rows of a Parquet file that are read at a time


class TableError(ValueError):
    """The table as a whole cannot be read; the message names the file and says what to do."""


@dataclass(frozen=True)
class TableRow:
    """A row as the table has it.

    `line` counts from 1: the line of the file where the row begins, in a Parquet file the row. `problem` says why a row
    cannot be read; it has no values then.
    """

    line: int
    values: Values
    problem: str = ""


def read_table(path: Path) -> Iterator[TableRow]:
    """Yield the rows of a table in their order. Raises TableError."""
    kinds = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
    read = kinds.get(path.suffix.lower())
    if read is None:
        raise TableError(f"{path.name} ends in {path.suffix or 'nothing'}: name a table in {', '.join(kinds)}.")
    if not path.is_file():
        raise TableError(f"{path.name} is not in {path.absolute().parent}. Name a table that is there.")
    try:
        yield from read(path)
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}.") from error


def _csv(path: Path) -> Iterator[TableRow]:
    with open(path, "rb") as file:
        encoding = "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    # Bytes that are no UTF-8 become lone surrogates, which _problem finds in the row that has them
    with open(path, encoding=encoding, errors="surrogateescape", newline="") as file:
        head = file.readline(MAX_CELL)
        file.seek(0)
        reader = csv.reader(file, delimiter=max(DELIMITERS, key=head.count), strict=True)
        limit = csv.field_size_limit(MAX_CELL)
        try:
            yield from _csv_rows(path, reader)
        except UnicodeDecodeError:
            raise TableError(f"{path} is not text in UTF-8. Save the table as UTF-8.") from None
        finally:
            csv.field_size_limit(limit)


def _csv_rows(path: Path, reader) -> Iterator[TableRow]:
    names: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            unclosed = ': a " is not closed, and all lines behind it are one cell' * ("end of data" in str(error))
            yield TableRow(line, {}, f"it is not CSV: {error}{unclosed}")
            continue
        if not cells or cells == [""]:
            continue
        if names is None:
            names = _column_names(path, cells)
        elif len(cells) != len(names):
            yield TableRow(line, {}, f"it has {len(cells)} cells, and the first line names {len(names)} columns")
        else:
            yield _row(line, dict(zip(names, cells, strict=True)))
    if names is None:
        raise TableError(f"{path} is empty: its first line names the columns.")


def _column_names(path: Path, cells: list[str]) -> list[str]:
    names = [name.strip() for name in cells]
    for name in names:
        if names.count(name) > 1:
            raise TableError(f"{path} has more than one column named {name!r}. Rename one.")
        if _half_characters(name) or "\0" in name:  # UTF-16 that does not begin with its mark
            raise TableError(f"{path} has a column name that is not UTF-8. Save the table as UTF-8.")
    return names


def _jsonl(path: Path) -> Iterator[TableRow]:
    seen = False
    with open(path, "rb") as file:
        line = 0
        while data := file.readline(MAX_LINE + 1):
            line += 1
            if len(data) > MAX_LINE:
                yield TableRow(line, {}, f"it is longer than {MAX_LINE} bytes")
                while data and not data.endswith(b"\n"):
                    data = file.readline(MAX_LINE)
                continue
            if not data.strip(b"\xef\xbb\xbf \t\r\n"):
                continue
            seen = True
            try:
                values = parse_json(data)
            except ValueError as error:
                yield TableRow(line, {}, f"it is not JSON: {error}")
                continue
            if isinstance(values, dict):
                yield _row(line, values)
            else:
                yield TableRow(line, {}, f"it is a {type(values).__name__}, and an object {{...}} was expected")
    if not seen:
        raise TableError(f"{path} is empty: each line is a JSON object with a row's columns.")


def _parquet(path: Path) -> Iterator[TableRow]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TableError(f"{path.name}: reading Parquet needs pyarrow. Install it: pip install pyarrow") from None
    line = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                for values in batch.to_pylist():
                    line += 1
                    yield _row(line, values)
    except (pyarrow.ArrowException, ValueError, UnicodeDecodeError) as error:
        raise TableError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    if not line:
        raise TableError(f"{path} has no rows.")


def _row(line: int, values: Values) -> TableRow:
    for name, value in values.items():
        if _half_characters(name) or _half_characters(value):
            return TableRow(line, {}, f"column {whole_characters(name)[0]!r} has bytes that are not UTF-8")
    return TableRow(line, values)


def _half_characters(value) -> bool:
    return isinstance(value, str) and not value.isascii() and whole_characters(value)[0] != value
