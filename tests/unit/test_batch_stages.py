"""Two stages: where a workflow is cut, which servers encode, and that every row ends once whatever happens."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path

import pytest

from mulan_nodes.mulan.batch.driver import Driver, Watcher
from mulan_nodes.mulan.batch.journal import DONE, Journal
from mulan_nodes.mulan.batch.node_inputs import NodeCatalog
from mulan_nodes.mulan.batch.rows import Row, Upload
from mulan_nodes.mulan.batch.scheduler import Scheduler
from mulan_nodes.mulan.batch.stages import DrawingWork, EncodingWork, split
from mulan_nodes.mulan.batch.two_stages import (
    DrawingWatcher,
    Encoders,
    EncodersError,
    EncodingWatcher,
    Roles,
    TwoStages,
    plan,
    read_encoders,
    roles,
)
from mulan_nodes.mulan.servers.workflow import WorkflowError
from mulan_nodes.tools import graphs
from mulan_nodes.tools.batch.simulation import Campaign, SimulatedFleet, in_simulated_time

OUTPUTS = {
    "CheckpointLoaderSimple": ["MODEL", "CLIP", "VAE"],
    "MuLanLoader": ["MODEL", "CLIP", "CLIP"],
    "LoraLoader": ["MODEL", "CLIP"],
    "CLIPTextEncode": ["CONDITIONING"],
    "ConditioningCombine": ["CONDITIONING"],
    "EmptyLatentImage": ["LATENT"],
    "KSampler": ["LATENT"],
    "VAEDecode": ["IMAGE"],
    "SaveImage": [],
    "MuLanPromptInspector": ["IMAGE", "STRING"],
}
CATALOG = NodeCatalog("a", {name: {"output": of, "output_node": name == "SaveImage"} for name, of in OUTPUTS.items()})
WORKFLOW = graphs.load("mulan_text_to_image")
STAGES = split(WORKFLOW, CATALOG)


def rows(*texts: str) -> list[Row]:
    return [
        Row(line, f"r{line}", "", (), ((("3", "text"), text), (("6", "seed"), line)), (), f"{line:032x}")
        for line, text in enumerate(texts, 2)
    ]


def classes(graph: dict) -> set[str]:
    return {node["class_type"] for node in graph.values()}


def test_the_cut_goes_through_what_a_clip_makes():
    assert list(STAGES.encoders) == [("3", 0), ("4", 0)]
    encoder = STAGES.encoders["3", 0]
    assert classes(encoder) == {"MuLanLoader", "CLIPTextEncode", "MuLanSaveConditioning"}
    assert "model" not in encoder["2"]["inputs"] and WORKFLOW["2"]["inputs"]["model"] == ["1", 0]
    assert STAGES.sampler["6"]["inputs"]["positive"] == ["3.0", 0]
    assert STAGES.sampler["3.0"]["class_type"] == STAGES.sampler["4.0"]["class_type"] == "MuLanLoadConditioning"
    assert "CLIPTextEncode" not in classes(STAGES.sampler) and STAGES.sampler["8"] == WORKFLOW["8"]


def test_what_follows_a_conditioning_is_drawn_with_and_a_lora_is_in_both():
    graph = graphs.add(
        WORKFLOW,
        ("20", "LoraLoader", {"model": ["2", 0], "clip": ["2", 1], "lora_name": "x"}),
        ("21", "ConditioningCombine", {"conditioning_1": ["3", 0], "conditioning_2": ["4", 0]}),
        KSampler_positive=["21", 0],
        KSampler_model=["20", 0],
        Prompt_clip=["20", 1],
    )
    stages = split(graph, CATALOG)
    assert stages.sampler["21"]["inputs"] == {"conditioning_1": ["3.0", 0], "conditioning_2": ["4.0", 0]}
    assert "LoraLoader" in classes(stages.sampler) and "LoraLoader" in classes(stages.encoders["3", 0])
    assert "ConditioningCombine" not in classes(stages.encoders["3", 0])


def test_what_cannot_be_cut_is_an_error():
    with pytest.raises(WorkflowError, match="no node of the workflow makes a CONDITIONING"):
        split({"1": {"class_type": "SaveImage", "inputs": {}}}, CATALOG)
    other = copy.deepcopy(WORKFLOW)
    other["20"] = {"class_type": "MuLanPromptInspector", "inputs": {"clip": ["2", 1], "text": ""}}
    other["21"] = {"class_type": "SaveImage", "inputs": {"images": ["20", 0], "filename_prefix": ""}}
    with pytest.raises(WorkflowError, match=r"MuLanPromptInspector \(node 20\) takes a CLIP"):
        split(other, CATALOG)


def test_a_prompt_is_encoded_once_and_its_file_goes_to_who_draws(tmp_path):
    table = rows("star", "moon", "star")
    work = EncodingWork(table, STAGES, tmp_path)
    assert len(work) == 3  # star, moon, and the empty negative prompt
    assert work.needs[0] == work.needs[2] != work.needs[1]
    assert [len(needing) for needing in work.needed_by.values()] == [2, 3, 1]
    moon = work.job(2, 0)
    assert moon.graph["3"]["inputs"]["text"] == "moon" and moon.must_save
    assert moon.graph["3.0.save"]["inputs"] == {"conditioning": ["3", 0], "filename_prefix": f"mulan_batch/{moon.key}"}
    with Journal(tmp_path / "c") as encodings:
        for task in range(3):
            file = {"name": f"files/{task}.safetensors", "node": "x", "sha256": str(task) * 64, "bytes": 0}
            encodings.add(DONE, {**work.record(task), "files": [file]})
        drawing = DrawingWork(table, STAGES, tmp_path, work.needs, encodings)
        job = drawing.job(1, 0)
    named = {job.graph[node]["inputs"]["file"] for node in ("3.0", "4.0")}
    assert named == {name for _, name in job.uploads} == {f"mulan_batch/{digit * 32}.safetensors" for digit in "12"}
    assert all(path.parent == tmp_path / "c" / "files" for path, _ in job.uploads) and len(job.uploads) == 2
    assert job.graph["6"]["inputs"]["seed"] == 3 and str(tmp_path) not in json.dumps(job.graph)
    assert STAGES.sampler["3.0"]["inputs"] == {}


def test_files_of_a_row_go_where_they_are_used(tmp_path):
    upload = Upload(Path("a.png"), "mulan_batch/a.png")
    values = ((("3", "text"), "star"), (("5", "image"), upload.name))
    row = Row(2, "r", "", (), values, (upload,), "0" * 32)
    assert not EncodingWork([row], STAGES, tmp_path).job(0, 0).uploads


@pytest.mark.parametrize(
    "servers, encode, draw, encoders",
    [(8, 1.0, 7.0, 1), (8, 1.0, 1.0, 4), (2, 9.0, 1.0, 1), (4, 0.1, 5.0, 1), (100, 0.2, 5.0, 4), (10, 5.0, 1.0, 9)],
)
def test_so_few_servers_encode_that_the_others_never_wait(servers, encode, draw, encoders):
    assert plan(servers, encode, draw) == encoders
    if 1 < encoders < servers - 1:
        assert encoders / encode >= (servers - encoders) / draw
        assert (encoders - 1) / encode < (servers - encoders + 1) / draw


def test_what_encodes_is_said_in_three_ways():
    urls, others = ["http://a", "http://b"], ["http://b", "http://e"]
    assert read_encoders([]) is None
    assert roles(Encoders(), urls, urls, 1) == Roles([0, 1, 2], [0, 1, 2], 0)
    assert roles(Encoders(2), urls, urls, 0) == Roles([0, 1], [0, 1], 2)
    said = read_encoders(others)
    assert said and roles(said, [*urls, "http://e"], urls, 0) == Roles([1, 2], [0, 1], 2)
    for texts, says in ((["0"], "write auto"), (["some"], "write auto"), (["2", "http://a"], "write auto")):
        with pytest.raises(EncodersError, match=says):
            read_encoders(texts)
    with pytest.raises(EncodersError, match="more than all servers .2."):
        roles(Encoders(3), urls, urls, 0)


def run(folder: Path, table: list[Row], of: Roles, fleet: dict, stop_after: float = 0.0) -> tuple[str, list[str], list]:
    """Run rows in two stages over simulated servers; return why it stopped, what was said, and the keys that ran."""
    said: list[str] = []

    async def go() -> tuple[str, list[str], list]:
        number = len(of.servers)
        with Journal(folder) as journal, Journal(folder / "conditioning") as encodings:
            left = [row for row in table if row.key not in journal.done and row.key not in journal.failed]
            work = EncodingWork(left, STAGES, folder / "conditioning")
            both = TwoStages(of, said.append)
            both.expect(work.needed_by, encodings.done, len(left))
            drawing = DrawingWork(left, STAGES, folder, work.needs, encodings)
            seconds: dict[str, float] = {key: fleet.get("encode", 1.0) for key in work.needed_by}
            seconds |= {row.key: 2.0 for row in table}
            poison = {work.needs[row][cut] for row, cut in fleet.get("poison", ())}
            servers = SimulatedFleet(
                Campaign(number, 0, [], away=fleet.get("away", 0)), seconds, poison, [1.0] * number,
                fleet.get("deaths", [None] * number),
            )  # fmt: skip
            names = [f"http://{index}" for index in range(number)]
            drawer = Driver(
                drawing, servers, journal, Scheduler(number), names, DrawingWatcher(both, Watcher()),
                waiting=both.waiting,
            )  # fmt: skip
            watcher = EncodingWatcher(both, Watcher(), work.key)
            encoder = Driver(work, servers, encodings, Scheduler(number), names, watcher)
            if stop_after:
                asyncio.get_running_loop().call_later(stop_after, both.stop, "stopped")
            return await both.run(encoder, drawer), said, servers.runs

    return in_simulated_time(asyncio.wait_for(go(), 10000))


def ended(folder: Path) -> tuple[set[str], dict[str, dict]]:
    with Journal(folder) as journal:
        return set(journal.done), journal.failed


ANY = Roles([0, 1, 2, 3], [0, 1, 2, 3], 0)
TABLE = rows(*(f"prompt {number % 15}" for number in range(60)))
KEYS = {row.key for row in TABLE}


@pytest.mark.parametrize(
    "of", [ANY, Roles([0, 1, 2, 3], [0, 1, 2, 3], 2), Roles([4], [0, 1, 2, 3], 1), Roles([0], [0], 1)]
)
def test_all_rows_are_drawn_and_each_prompt_is_encoded_once(tmp_path, of):
    reason, said, runs = run(tmp_path, TABLE, of, {})
    assert not reason and ended(tmp_path) == (KEYS, {})
    assert len(runs) == len(set(runs)) == 60 + 16
    assert said[0] == "two stages: 16 prompts, 0 of them encoded in earlier runs"
    assert len(said) == 2 and "60 rows have 16" in said[1]


def test_servers_that_encode_draw_when_nothing_is_left_to_encode(tmp_path):
    assert not run(tmp_path, TABLE, Roles([0, 1, 2, 3], [0, 1, 2, 3], 2), {"encode": 0.1})[0]
    with Journal(tmp_path) as journal:
        drawn_by = {journal.record(key)["server"] for key in journal.done}
    assert drawn_by == {"http://0", "http://1", "http://2", "http://3"}


def test_the_plan_lets_more_servers_encode_and_the_others_wait_less(tmp_path):
    slow = {"encode": 5.0}
    table = rows(*(f"prompt {number}" for number in range(60)))
    _, said, runs = run(tmp_path, table, ANY, slow)
    assert "of 4 servers, 3 to encode and 1 to draw" in said[1] and len(runs) == 121
    with Journal(tmp_path / "conditioning") as encodings:
        assert len({encodings.record(key)["server"] for key in encodings.done}) == 3


def test_encoders_and_others_die_and_come_back(tmp_path):
    for away, name in ((30, "back"), (0, "gone")):
        fleet = {"deaths": [4.0, None, 11.0, None], "away": away}
        reason, _, _ = run(tmp_path / name, TABLE, ANY, fleet)
        assert not reason and ended(tmp_path / name) == (KEYS, {})
    only = {"deaths": [None, 3.0], "away": 0}  # the one that encodes draws, too
    assert not run(tmp_path / "one", TABLE, Roles([0, 1], [0, 1], 1), only)[0]
    assert ended(tmp_path / "one") == (KEYS, {})


def test_rows_of_a_prompt_that_cannot_be_encoded_fail_and_the_others_are_drawn(tmp_path):
    reason, _, _ = run(tmp_path, TABLE, ANY, {"poison": [(2, ("3", 0))]})
    done, failed = ended(tmp_path)
    expected = {row.key for number, row in enumerate(TABLE) if number % 15 == 2}
    assert not reason and set(failed) == expected and done == KEYS - expected
    assert all(record["error"].startswith("its prompt could not be encoded: bad") for record in failed.values())


@pytest.mark.parametrize("moment", [1.5, 4.5, 9.1, 15.2])
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, moment):
    reason, _, first = run(tmp_path, TABLE, ANY, {}, moment)
    assert reason == "stopped"
    reason, _, second = run(tmp_path, TABLE, ANY, {})
    assert not reason and ended(tmp_path) == (KEYS, {})
    assert not set(first) & set(second) or len(first) + len(second) <= 76 + 8  # what was under way alone
