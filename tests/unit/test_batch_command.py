"""The command line of batches: what ends it before Ray starts, in words that a person can act on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mulan_nodes.mulan.batch.__main__ import main


@pytest.fixture
def command(tmp_path) -> list[str]:
    (tmp_path / "w.json").write_text(json.dumps({"1": {"class_type": "SaveImage", "inputs": {}}}))
    (tmp_path / "t.csv").write_text("id,prompt\na,star\n")
    return ["run", str(tmp_path / "t.csv"), str(tmp_path / "w.json"), "--out", str(tmp_path / "out")]


@pytest.mark.parametrize("package", ["pyarrow", "ray"])
def test_a_package_that_is_missing_is_named_before_the_first_row(command, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert main([*command, "--servers", "http://127.0.0.1:9"]) == 2
    assert f"{package} is not installed. Install what batches need: pip install" in capsys.readouterr().err


def test_a_ray_that_does_not_start_is_reported_without_a_traceback(command, monkeypatch, capsys):
    def init(**_):
        raise Exception("The current node timed out during startup.\nMore")

    monkeypatch.setattr("ray.init", init)
    assert main([*command, "--servers", "http://127.0.0.1:9"]) == 2
    words = capsys.readouterr().err
    assert words.startswith("Nothing was run: Ray: The current node timed out during startup. Where other programs")


def test_wrong_words_end_the_command_and_leave_nothing(command, tmp_path, capsys):
    assert main(command) == 2
    assert "Name --servers URL" in capsys.readouterr().err
    table = Path(command[1])
    for more, content, says in (
        (["--servers", "10.0.0.7:8188"], "id\na\n", "write an address such as"),
        (["--servers", "http://a:1", "--set", "1.images"], "id\na\n", "write node.input=column"),
        (["--servers", "http://a:1", "--encoders", "0"], "id\na\n", "write auto, a number of servers, or addresses"),
        (["--servers", "http://a:1", "--encoders", "2"], "id\na\n", "is more than all servers (1)"),
        (["--servers", "http://a:1", "--header", "secret"], "id\na\n", "write Name: value"),
        (["--servers", "http://a:1"], "", "is empty"),
    ):
        table.write_text(content)
        assert main([*command, *more]) == 2
        words = capsys.readouterr().err
        assert says in words and "secret" not in words and not (tmp_path / "out").exists()
