"""`mulan.batch` on a real server, with its own Ray: a bad row, a driver that ends in the middle, the same command."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mulan_nodes.mulan.batch.rows import prompt_id
from mulan_nodes.tools import graphs
from mulan_nodes.tools.batch import trial

ROWS = {"a": ("a red circle", "en", 1), "b": ("красный круг", "ru", 2), "c": ("赤い円", "ja", 3)}
# The command, whose process ends without a word behind the second result that its journal has
DIES = """
import os, sys
from mulan_nodes.mulan.batch import __main__ as command, driver
add, done = driver.Journal.add, []
def add_and_die(journal, kind, record):
    add(journal, kind, record)
    done.append(kind)
    if len(done) == 2:
        os._exit(9)
driver.Journal.add = add_and_die
sys.exit(command.main(sys.argv[1:]))
"""


def batch(*arguments, program=("-m", "mulan_nodes.mulan.batch")) -> subprocess.CompletedProcess:
    command = [sys.executable, *program, "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")


def test_a_table_goes_on_after_the_end_of_its_driver_and_each_row_is_drawn_once(server, tiny_models, tmp_path):
    lines = [f"{name},{prompt},{language},{seed}" for name, (prompt, language, seed) in ROWS.items()]
    lines.insert(1, "bad,a blue star,en,many")
    (tmp_path / "table.csv").write_text("\n".join(["id,prompt,language,seed", *lines]), "utf-8")
    graph = trial.workflow(2)
    (tmp_path / "graph.json").write_text(json.dumps(graph), "utf-8")
    out = tmp_path / "out"
    command = (tmp_path / "table.csv", tmp_path / "graph.json", "--servers", server.url, "--out", out)
    command += ("--set", "Prompt.text=prompt", "KSampler.seed=seed")

    first = batch(*command, program=("-c", DIES))
    assert first.returncode == 9, first.stdout + first.stderr
    assert len(trial.done_keys(out)) == 2 and not trial.records(out)

    second = batch(*command)
    assert second.returncode == 1, second.stdout + second.stderr
    assert "3 rows, 2 of them ended in earlier runs; 1 bad rows" in second.stdout
    (bad,) = map(json.loads, (out / "failed.jsonl").read_text("utf-8").splitlines())
    assert (bad["id"], bad["line"]) == ("bad", 3) and "many" in bad["error"]

    records = trial.records(out)
    assert sorted(trial.done_keys(out)) == sorted(record["key"] for record in records.values())
    assert records.keys() == ROWS.keys()
    names = [file["name"] for record in records.values() for file in record["files"]]
    assert sorted(names) == sorted(file.relative_to(out).as_posix() for file in files(out / "files"))
    history = server.ask("/history")
    for name, record in records.items():
        assert record["attempts"] == 1 and prompt_id(record["key"], 0) in history
        assert prompt_id(record["key"], 1) not in history
        (file,) = record["files"]
        data = (out / file["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
        prompt, _, seed = ROWS[name]
        undisturbed = graphs.change(graphs.change(graph, "Prompt", text=prompt), "KSampler", seed=seed)
        assert np.array_equal(np.asarray(Image.open(out / file["name"])), server.run(undisturbed).images[0])
    assert len(files(out / "sheets")) == 3
    assert "| ru | 1 | 1 |" in (out / "summary.md").read_text("utf-8")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
