"""dev.py bench --visionllm: that it runs on a tiny model, and what its figures rest on. The measuring itself is no
test.
"""

from __future__ import annotations

import json

import pytest
import torch

from mulan_nodes.tools.bench import sections, visionllm
from mulan_nodes.tools.bench.visionllm_parts import Canvas, deformable_attention
from mulan_nodes.tools.bench.visionllm_report import markdown, second_ratio
from mulan_nodes.tools.bench.visionllm_weights import MANIFEST, Depth, kept_shapes
from mulan_nodes.tools.bench.worker import peak_bytes


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    *_, last = visionllm.measure(
        visionllm.parse(["--quick", "--repeat", "1"]), tmp_path_factory.mktemp("bench"), {}, lambda _: None
    )
    return last


def test_the_quick_run_gives_every_table(results):
    json.dumps(results)
    text = markdown(results)
    assert all(
        f"### {title}" in text
        for title in (
            "The second question about a picture: the language model",
            "The same, with everything around it",
            "Answers in words",
            "Parts of the decoder",
            "Where the time goes",
        )
    )
    for row in ("| 1 |", "| 5 |", "| with the cache |", "| masks |", "| deformable attention, one layer |"):
        assert f"\n{row}" in text


def test_the_quick_run_computes_the_same_on_both_sides(results):
    assert results["writing"]["same_text"] and results["writing"]["same_texts"] == results["writing"]["questions"]
    assert all(part["differ"] <= sections.EQUAL for part in [*results["parts"].values(), *results["asking"].values()])


def test_a_second_question_does_not_look_again(results):
    for of in results["asking"].values():
        assert (
            of["first"]["tower"]["wall"] > 0
            and of["second"]["tower"]["wall"] == 0
            and of["second"]["language"]["wall"] > 0
        )
    assert (
        results["asking"]["1"]["second"]["grounding"]["wall"] == 0
        and results["asking"]["5"]["second"]["grounding"]["wall"] > 0
    )
    one, five = (results["asking"][views]["tokens"] for views in ("1", "5"))
    assert five["begin"] > one["begin"] and five["question"] == one["question"]


def test_goals_are_judged_by_the_figures(results):
    changed = json.loads(json.dumps(results))
    changed["asking"]["5"]["second"]["language"]["cpu"] = 0.11 * changed["asking"]["5"]["first"]["language"]["cpu"]
    changed["parts"]["masks"]["ours"]["peak"] = 0.04 * changed["parts"]["masks"]["theirs"]["peak"]
    assert second_ratio(changed, "5") == pytest.approx(0.11)
    text = markdown(changed)
    assert "at most 0.1: missed" in text and "at most 0.05: reached" in text


def test_peak_counts_what_is_held_at_a_time():
    def work():
        one = torch.ones(1000)
        two = one + 1
        del one
        return two * 2

    assert peak_bytes(work) == pytest.approx(8000, rel=0.05)


def test_deformable_attention_is_the_library_s():
    part = deformable_attention(Canvas(levels=((6, 5), (3, 3)), heads=2, channels=4))
    assert torch.allclose(part.ours(), part.theirs(), atol=1e-6)


def test_the_file_to_be_keeps_what_is_asked_and_all_widths():
    shapes = kept_shapes(json.loads(MANIFEST.read_text("utf-8")), Depth(language=2, tower=4))
    assert {name.split(".")[3] for name in shapes if name.startswith("llm.model.layers.")} == {"0", "1"}
    assert shapes["llm.model.layers.1.mlp.up_proj.weight"] == (11008, 4096) and shapes["vl_bridge.0.weight"] == (
        4096,
        1024,
    )
    assert any(name.startswith("gdino.") for name in shapes) and not any(
        name.startswith(("unipose.", "sd.", "ip2p.")) for name in shapes
    )
