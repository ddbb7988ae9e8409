"""`dev.py soak` in short: what becomes of graphs that are interrupted, deleted, left alone and killed."""

from __future__ import annotations

import pytest

from mulan_nodes.tools.soak import soak
from mulan_nodes.tools.soak.soak import Report, Soak


def test_a_short_soak_loses_nothing(comfyui_folder, tiny_models, tmp_path, monkeypatch):
    for name in ("INTERRUPTS", "FREES", "DELETES", "VANISHES"):
        monkeypatch.setattr(soak, name, 0.25)
    report = Soak(comfyui_folder, True, prompts=20, kills=1, seed=3, folder=tmp_path).run()
    assert report.passed(), report.table()
    lives = 2  # each begins with a graph that saves what others load
    assert sum(report.ended.values()) == 20 + lives and report.ended["success"] > 5
    assert all(report.acts[act] for act in ("interrupts", "deletes", "lost clients", "frees", "kills"))


@pytest.mark.parametrize("growth, passes", [(0, True), (15, True), (30, False)])
def test_growth_is_measured_after_the_warm_up(growth, passes):
    report = Report(samples=[(done, 900 - min(done, 150) + growth * done / 1000) for done in range(0, 701, 20)])
    measured = report.growth()
    assert measured == pytest.approx(growth) and report.passed() == passes
    report.lost.append("a graph")
    assert not report.passed()
    assert Report(samples=[(20, 900.0)]).growth() is None
