"""`mulan.batch --encoders` on two real servers: one encodes, the other draws from files what one stage draws."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from mulan_nodes.tests.graph.test_batch import DIES, batch
from mulan_nodes.tools import graphs
from mulan_nodes.tools.batch import trial

PROMPTS = ("a red circle", "красный круг", "赤い円")
ROWS = {f"{number}": (PROMPTS[number % 3], number) for number in range(9)}


def test_one_server_encodes_each_prompt_once_and_the_images_are_those_of_one_stage(
    comfyui_folder, tiny_models, tmp_path
):
    lines = [f"{name},{prompt},{seed}" for name, (prompt, seed) in ROWS.items()]
    (tmp_path / "table.csv").write_text("\n".join(["id,prompt,seed", *lines]), "utf-8")
    graph = trial.workflow(2)
    (tmp_path / "graph.json").write_text(json.dumps(graph), "utf-8")
    out = tmp_path / "out"
    with trial.servers(comfyui_folder, 2, tmp_path) as (encoder, drawer):
        command = (tmp_path / "table.csv", tmp_path / "graph.json", "--servers", drawer.url, "--encoders", encoder.url)
        command += ("--out", out, "--set", "Prompt.text=prompt", "KSampler.seed=seed")

        first = batch(*command, program=("-c", DIES))  # behind the second record, of a prompt or a row
        assert first.returncode == 9, first.stdout + first.stderr
        second = batch(*command)
        assert second.returncode == 0, second.stdout + second.stderr
        assert "9 rows, 0 of them ended in earlier runs" in second.stdout
        assert "two stages: 4 prompts, 2 of them encoded in earlier runs" in second.stdout
        assert "9 rows are done, 0 failed" in second.stdout

        records = trial.records(out)
        assert records.keys() == ROWS.keys() and len(trial.done_keys(out)) == 9
        classes = [node_classes(server.ask("/history")) for server in (encoder, drawer)]
        assert classes == [4 * [ENCODES], 9 * [DRAWS]]
        loads = ["load MulanTextEncoder" in server.log.read_text("utf-8", "replace") for server in (encoder, drawer)]
        assert loads == [True, False]
        assert str(tmp_path) not in json.dumps([entry["prompt"] for entry in drawer.ask("/history").values()])

        for name, (prompt, seed) in ROWS.items():
            (file,) = records[name]["files"]
            undisturbed = graphs.change(graphs.change(graph, "Prompt", text=prompt), "KSampler", seed=seed)
            assert np.array_equal(np.asarray(Image.open(out / file["name"])), drawer.run(undisturbed).images[0]), name


ENCODES = ["CLIPTextEncode", "MuLanLoader", "MuLanSaveConditioning"]
DRAWS = [
    *("CheckpointLoaderSimple", "EmptyLatentImage", "KSampler", "MuLanLoadConditioning", "MuLanLoadConditioning"),
    *("MuLanLoader", "SaveImage", "VAEDecode"),
]


def node_classes(history: dict) -> list[list[str]]:
    return [sorted(node["class_type"] for node in entry["prompt"][2].values()) for entry in history.values()]
