"""Tables of prompts: every good row is read, every bad one is reported with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mulan_nodes.mulan.batch.table import TableError, TableRow, read_table


def rows(path: Path, content: bytes | str) -> list[TableRow]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_table(path))


def values(read: list[TableRow]) -> list[dict]:
    return [row.values for row in read if not row.problem]


PROMPT = '一个 "红" 星, и\nзвезда'


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_with_quotes_line_breaks_and_a_byte_order_mark(tmp_path, bom, delimiter, end):
    quoted = '"' + PROMPT.replace('"', '""') + '"'
    lines = [delimiter.join(cells) for cells in (("id", "prompt"), ("a", quoted), ("b", "🌟"))]
    read = rows(tmp_path / "t.csv", bom + end.join(lines) + end)
    assert values(read) == [{"id": "a", "prompt": PROMPT}, {"id": "b", "prompt": "🌟"}]
    assert [row.line for row in read] == [2, 4]


def test_csv_in_utf_16(tmp_path):
    assert values(rows(tmp_path / "t.csv", "id\tprompt\na\tзвезда\n".encode("utf-16"))) == [
        {"id": "a", "prompt": "звезда"}
    ]


def test_bad_lines_of_csv_do_not_stop_the_others(tmp_path):
    read = rows(tmp_path / "t.csv", b'id,prompt\na,one\nb\nc,two,three\nd,\xff\xfe\n"e"x,y\nf,last\n\n')
    assert [(row.line, bool(row.problem)) for row in read] == [
        (2, False),
        (3, True),
        (4, True),
        (5, True),
        (6, True),
        (7, False),
    ]
    assert "1 cells" in read[1].problem and "UTF-8" in read[3].problem and "not CSV" in read[4].problem


def test_a_quotation_mark_that_is_not_closed_is_called_so(tmp_path):
    first, second = rows(tmp_path / "t.csv", 'id,prompt\na,one\nb,"two\nc,three\n')
    assert (first.problem, second.line) == ("", 3) and "all lines behind it" in second.problem


def test_bad_lines_of_jsonl_do_not_stop_the_others(tmp_path):
    lines = ['\ufeff{"id": 1, "prompt": "a"}', "", "{", "[1]", '{"prompt": "\\ud83d"}', '{"id": "z", "seed": null}']
    read = rows(tmp_path / "t.jsonl", "\n".join(lines))
    assert [(row.line, bool(row.problem)) for row in read] == [(1, False), (3, True), (4, True), (5, True), (6, False)]
    assert values(read) == [{"id": 1, "prompt": "a"}, {"id": "z", "seed": None}]


def test_parquet_gives_the_same_as_jsonl(tmp_path):
    expected = [{"id": f"r{number}", "prompt": "звезда", "seed": 2**60 + number} for number in range(600)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(expected), tmp_path / "t.parquet")
    read = list(read_table(tmp_path / "t.parquet"))
    assert values(read) == expected and [row.line for row in read] == list(range(1, 601))
    assert values(rows(tmp_path / "t.jsonl", "\n".join(map(json.dumps, expected)))) == expected


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("t.csv", "", "is empty"),
        ("t.jsonl", "\n\n", "is empty"),
        ("t.parquet", "no parquet", "not a readable Parquet"),
        ("t.xlsx", "x", ".csv, .tsv, .jsonl"),
        ("t.csv", "id,prompt\n".encode("utf-16-le"), "Save the table as UTF-8"),
        ("t.csv", "a,a\n1,2\n", "more than one column named 'a'"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, says):
    with pytest.raises(TableError, match=says):
        rows(tmp_path / name, content)
    with pytest.raises(TableError, match="is not in"):
        list(read_table(tmp_path / "other.csv"))
