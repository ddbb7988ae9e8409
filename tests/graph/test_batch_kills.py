"""`mulan.batch` on three real servers, of which one, a worker and the command itself are killed in the middle."""

from __future__ import annotations

from mulan_nodes.tools.batch import trial

ROWS, SEED = 24, 18  # a worker of a server that is alive, the command, a server


def test_nothing_is_lost_or_comes_twice_when_a_server_a_worker_and_the_driver_are_killed(
    comfyui_folder, tiny_models, tmp_path
):
    with trial.servers(comfyui_folder, 3, tmp_path) as servers:
        seen = trial.try_kills(servers, ROWS, trial.ACTS, SEED, tmp_path, restart=False)
    words = "\n".join([seen.table(), *seen.log])
    assert sorted(act for act, _ in seen.kills) == sorted(trial.ACTS), words
    assert seen.passed(), words
    assert len(trial.records(tmp_path / "all")) == ROWS, words
