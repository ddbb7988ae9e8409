"""Rows filled into a workflow: placeholders, values as nodes take them, keys, and what is refused before a run."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from mulan_nodes.mulan.batch.node_inputs import NodeCatalog
from mulan_nodes.mulan.batch.placeholders import parse_placeholders
from mulan_nodes.mulan.batch.rows import Rows, prompt_id, read_rows
from mulan_nodes.mulan.batch.table import TableError, TableRow
from mulan_nodes.mulan.batch.work import RowWork, file_stem
from mulan_nodes.mulan.servers.credentials import AddressError, HeaderError, read_addresses, read_headers, server_name
from mulan_nodes.mulan.servers.workflow import WorkflowError, load_workflow

WORKFLOW = {
    "1": {"class_type": "Loader", "inputs": {"ckpt": "a.safetensors"}},
    "3": {"class_type": "Encode", "inputs": {"text": "", "clip": ["1", 1]}, "_meta": {"title": "Prompt"}},
    "4": {"class_type": "Encode", "inputs": {"text": "", "clip": ["1", 1]}},
    "6": {"class_type": "Sampler", "inputs": {"seed": 1, "cfg": 4.0, "fast": False, "positive": ["3", 0]}},
    "8": {"class_type": "Save", "inputs": {"images": ["6", 0], "filename_prefix": "mine"}},
    "9": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
}
INFO = {
    "Loader": {"input": {"required": {"ckpt": [["a.safetensors", "b.safetensors"], {}]}}, "output": ["MODEL", "CLIP"]},
    "Encode": {"input": {"required": {"text": ["STRING", {}], "clip": ["CLIP"]}}, "output": ["CONDITIONING"]},
    "Sampler": {
        "input": {
            "required": {
                "seed": ["INT", {"min": 0, "max": 2**64 - 1}],
                "cfg": ["FLOAT", {"min": 0.0, "max": 100.0}],
                "fast": ["BOOLEAN", {}],
                "positive": ["CONDITIONING"],
            },
            "optional": {"name": ["COMBO", {"options": ["euler", "ddim"]}]},
        }
    },
    "Save": {"input": {"required": {"filename_prefix": ["STRING", {}]}}, "output_node": True},
    "LoadImage": {"input": {"required": {"image": [["example.png"], {"image_upload": True}]}}},
}
CATALOG = NodeCatalog("http://one", INFO)


def read(values: list[dict], *placeholders: str, folder: Path = Path("."), catalogs=(CATALOG,)) -> Rows:
    table = [TableRow(line, row) for line, row in enumerate(values, 2)]
    return read_rows(table, WORKFLOW, parse_placeholders(WORKFLOW, placeholders), catalogs, folder)


def test_values_reach_their_nodes_as_these_take_them():
    rows = read(
        [
            {
                "id": "a",
                "language": "ru",
                "p": "звезда",
                "s": "18446744073709551615",
                "c": "7.5",
                "f": "yes",
                "n": "ddim",
            }
        ],
        *("Prompt.text=p", "Sampler.seed=s", "6.cfg=c", "6.fast=f", "6.name=n"),
    )
    graph = rows.good[0].graph(WORKFLOW)
    assert graph["3"]["inputs"] == {"text": "звезда", "clip": ["1", 1]} and graph["4"] == WORKFLOW["4"]
    assert graph["6"]["inputs"] == {"seed": 2**64 - 1, "cfg": 7.5, "fast": True, "positive": ["3", 0], "name": "ddim"}
    assert graph["8"]["inputs"]["filename_prefix"] == f"mulan_batch/{rows.good[0].key}"
    assert rows.good[0].language == "ru" and WORKFLOW["6"]["inputs"]["seed"] == 1


@pytest.mark.parametrize(
    "column, value, says",
    [
        ("6.seed", "-1", "out of range: 0 to"),
        ("6.seed", "1.5", "not a whole number"),
        ("6.seed", "", "not a whole number"),
        ("6.seed", True, "not a number"),
        ("6.cfg", "nan", "not a number"),
        ("6.cfg", None, "empty"),
        ("6.fast", "perhaps", "neither true nor false"),
        ("6.name", "heun", "not in its list: euler, ddim on http://one"),
        ("1.ckpt", "c.safetensors", "not in its list: a.safetensors, b.safetensors"),
        ("Prompt.text", ["a"], "not text"),
        ("9.image", "gone.png", "there is no file"),
    ],
)
def test_a_bad_value_is_reported_with_its_line_and_stops_nothing(column, value, says):
    good = {"6.seed": 1, "6.cfg": 1, "6.fast": "1", "6.name": "euler", "1.ckpt": "b.safetensors"}.get(
        column, "example.png"
    )
    rows = read([{"x": good}, {"x": value}, {"x": good}, {"y": 1}], f"{column}=x")
    assert [row.line for row in rows.good] == [2, 4] and [bad.line for bad in rows.bad] == [3, 5]
    assert says in rows.bad[0].problem and "no column 'x'" in rows.bad[1].problem


def test_a_row_must_run_on_every_server():
    other = copy.deepcopy(INFO)
    other["Loader"]["input"]["required"]["ckpt"][0].remove("b.safetensors")
    rows = read(
        [{"x": "a.safetensors"}, {"x": "b.safetensors"}],
        "1.ckpt=x",
        catalogs=(CATALOG, NodeCatalog("http://two", other)),
    )
    assert len(rows.good) == 1 and "http://two" in rows.bad[0].problem


def test_keys_are_those_of_what_is_drawn():
    one, same = (read([{"id": "a", "x": "star"}], "3.text=x").good[0] for _ in range(2))
    others = [read([{"id": "a", "x": "moon"}], "3.text=x"), read([{"id": "b", "x": "star"}], "3.text=x")]
    assert one.key == same.key and len({one.key, *(rows.good[0].key for rows in others)}) == 3
    assert prompt_id(one.key, 0) == prompt_id(same.key, 0) != prompt_id(one.key, 1)
    twice = read([{"id": "a", "x": "1"}, {"id": "a", "x": "2"}], "3.text=x")
    assert "too" in twice.bad[0].problem and len(twice.good) == 1


def test_images_go_by_their_content_and_no_path_goes_to_a_server(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "photo.PNG").write_bytes(b"image")
    (row,) = read([{"id": "../../a b", "x": "in/photo.PNG"}], "9.image=x", folder=tmp_path).good
    job = RowWork([row], WORKFLOW, tmp_path / "out").job(0, 0)
    assert job.uploads == ((tmp_path / "in" / "photo.PNG", job.graph["9"]["inputs"]["image"]),)
    assert str(tmp_path) not in json.dumps(job.graph) and "photo" not in json.dumps(job.graph)
    assert file_stem(row).startswith("files/0000/") and ".." not in file_stem(row)


@pytest.mark.parametrize(
    "text, says",
    [
        ("nothing", "write node.input=column"),
        ("7.text=p", "no node '7'"),
        ("Encode.text=p", "name of 2 nodes"),
        ("3.words=p", "no input 'words'"),
        ("3.clip=p", "takes a connection of type CLIP"),
    ],
)
def test_wrong_placeholders_are_refused(text, says):
    with pytest.raises(WorkflowError, match=says):
        read([{"p": 1}], text)


def test_a_column_that_no_row_has_is_refused():
    with pytest.raises(TableError, match="no column 'prompt'. It has 'Prompt', 'id'"):
        read([{"id": 1, "Prompt": "x"}], "3.text=prompt")


@pytest.mark.parametrize(
    "content, says",
    [("[", "not a readable workflow"), ('{"nodes": []}', "Export"), ("{}", "no nodes"), ('{"1": {}}', "class_type")],
)
def test_what_is_no_workflow_is_refused(tmp_path, content, says):
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(WorkflowError, match=says):
        load_workflow(tmp_path / "w.json")


def test_a_server_without_a_node_or_a_model_is_named():
    for change, says in (
        (lambda info: info.pop("Encode"), "no node Encode"),
        (lambda info: info["Loader"]["input"]["required"]["ckpt"].__setitem__(0, ["z"]), "not in its list: z"),
    ):
        info = copy.deepcopy(INFO)
        change(info)
        with pytest.raises(WorkflowError, match=f"http://two.*{says}"):
            NodeCatalog("http://two", info).check_workflow(WORKFLOW, [])


def test_headers_go_to_their_server_and_into_no_message(tmp_path):
    urls, file = ["http://a:1", "http://b:2"], tmp_path / "headers"
    file.write_text("# all\nX-Key: k\n[http://b:2/]\nAuthorization: Bearer secret\n")
    assert read_headers(file, ["Y: 1"], urls) == {
        "http://a:1": {"Y": "1", "X-Key": "k"},
        "http://b:2": {"Y": "1", "X-Key": "k", "Authorization": "Bearer secret"},
    }
    for content in ("secret", "[http://c]\n", "A: b\x01secret"):
        file.write_text(content)
        with pytest.raises(HeaderError) as error:
            read_headers(file, [], urls)
        assert "secret" not in str(error.value)
    assert server_name("https://me:secret@host:8188/path/") == "https://host:8188/path"
    file.write_bytes(b"A: secret\xff")
    for unreadable, says in ((file, "not text in UTF-8"), (tmp_path / "none", "No such file")):
        with pytest.raises(HeaderError, match=says):
            read_headers(unreadable, [], urls)
    with pytest.raises(HeaderError) as error:
        file.write_text("[http://c]\n")
        read_headers(file, [], ["https://me:secret@host:8188"])
    assert "secret" not in str(error.value)


def test_an_address_counts_once_and_what_is_none_is_refused():
    assert read_addresses(["http://a:1/", "http://b/x", "http://a:1"]) == ["http://a:1", "http://b/x"]
    for text in ("me:secret@10.0.0.7:8188", "http://", "ws://a:1"):
        with pytest.raises(AddressError, match="such as http://10.0.0.7:8188") as error:
            read_addresses([text])
        assert "secret" not in str(error.value)
