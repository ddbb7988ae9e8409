"""dev.py bench --internvl: that it runs on a tiny model, and what its figures rest on. Measuring is no test."""

from __future__ import annotations

import json

import pytest
import torch

from mulan_nodes.tools.bench import internvl
from mulan_nodes.tools.bench.internvl_report import anew, markdown, ratio
from mulan_nodes.tools.bench.internvl_work import QUICK, TOP, Amounts, Texts, load, orders, write_checkpoint


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def results(cache):
    *_, last = internvl.measure(internvl.parse(["--quick", "--repeat", "1"]), cache, {}, lambda _: None)
    return last


@pytest.fixture(scope="module")
def texts(cache):
    return Texts(load(write_checkpoint(cache, QUICK, lambda _: None))[0], Amounts())


def test_the_quick_run_gives_every_table(results):
    json.dumps(results)
    text = markdown(results)
    assert all(
        f"### {title}" in text
        for title in (
            "30 labels",
            "Labels in 80 templates",
            "5 pictures",
            "The order of 300 vectors",
            "A folder of 300 pictures that was seen before",
            "Where the time goes",
        )
    )
    for row in (
        "| one by one |",
        "| C | ours: in batches |",
        "| G | one by one |",
        "| a Python loop over the vectors, then `sorted` |",
        "| seen before: names, times and vectors are read | 300 |",
    ):
        assert f"\n{row}" in text


def test_the_quick_run_computes_the_same_on_all_sides(results):
    compared = [
        results["texts"]["ways"],
        results["zeroshot"]["ways"],
        *results["pictures"].values(),
        results["ranking"],
    ]
    assert all(way["differ"] <= 1e-5 for ways in compared for way in ways.values())
    assert results["folder"]["seen"]["pictures"] == 300 and results["folder"]["new"]["pictures"] == 5


def test_rows_are_what_the_llama_computes(results):
    of, ways = results["texts"], results["texts"]["ways"]
    assert ways["one by one"]["rows"] == of["tokens"] <= ways["ours"]["rows"] < ways["padded"]["rows"] == 30 * 80
    assert results["zeroshot"]["ways"]["padded"]["rows"] == 2 * 80 * 80
    assert results["zeroshot"]["ways"]["ours"]["rows"] > 0 == results["zeroshot"]["ways"]["again"]["rows"]


def test_the_labels_are_a_thousand_and_of_many_lengths(texts):
    assert len(set(texts.texts)) == 1000 and len(texts.sentences) == 8 * 80 == len(set(texts.sentences))
    lengths = {texts.tokens([text]) for text in texts.texts}
    assert min(lengths) < 10 < 25 < max(lengths) <= 80


def test_each_round_encodes_the_sentences_anew(cache):
    few = Texts(load(write_checkpoint(cache, QUICK, lambda _: None))[0], Amounts.few())
    first, again = (few.rows(few.zeroshot()["ours"])[1]["rows"] for _ in range(2))
    assert first == again > 0


def test_a_way_to_another_result_stops_the_run():
    ways = {"ours": lambda: torch.ones(3), "other": lambda: torch.tensor([1.0, 1.0, 1.1])}
    with pytest.raises(SystemExit, match="other: the results differ"):
        internvl.compared(ways, 1, lambda _: None)


def test_all_orders_begin_with_the_same_ten():
    found = [way() for way in orders(Amounts(vectors=2000)).values()]
    assert len(set(map(tuple, found))) == 1 and len(found[0]) == TOP


def test_ratios_are_of_what_was_measured():
    ways = {"ours": {"cpu": 1.0, "wall": 3.0}, "other": {"cpu": 4.0, "wall": 6.0}}
    assert (ratio(ways, "other"), ratio(ways, "other", "wall")) == (0.25, 0.5)
    assert anew({"new": {"cpu": 3.0, "pictures": 6}, "seen": {"cpu": 1.0, "pictures": 100}}) == 50
