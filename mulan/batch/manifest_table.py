"""The manifest as a Parquet file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

from ..boundary.files import WholeFile

_ROWS = 1024  # in memory at a time
_AS_JSON = ("columns", "texts")


def write_parquet(path: Path, records: Iterable[dict]) -> None:
    """Write the records of rows that are done, whole or not at all; columns and texts are JSON."""
    import pyarrow
    import pyarrow.parquet

    text, number = pyarrow.string(), pyarrow.int64()
    file = pyarrow.struct([("name", text), ("node", text), ("sha256", text), ("bytes", number)])
    schema = pyarrow.schema(
        [
            ("id", text),
            ("line", number),
            ("language", text),
            ("columns", text),
            ("files", pyarrow.list_(file)),
            ("texts", text),
            ("server", text),
            ("seconds", pyarrow.float64()),
            ("attempts", number),
            ("key", text),
        ]
    )
    records = iter(records)
    with WholeFile(path) as target, pyarrow.parquet.ParquetWriter(_Sink(target), schema) as table:
        while rows := list(itertools.islice(records, _ROWS)):
            columns = {name: [_cell(name, row.get(name)) for row in rows] for name in schema.names}
            table.write_table(pyarrow.table(columns, schema=schema))


def _cell(name: str, value):
    return json.dumps(value, ensure_ascii=False) if name in _AS_JSON else value


class _Sink:
    """A WholeFile as pyarrow wants files."""

    closed = False

    def __init__(self, file: WholeFile):
        self._file, self._size = file, 0

    def write(self, data) -> int:
        size = memoryview(data).nbytes
        self._file.write(data)
        self._size += size
        return size

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Nothing waits: the file has no buffer."""

    def close(self) -> None:
        """WholeFile closes it."""
