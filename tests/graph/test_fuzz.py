"""Some hundred cases of the fuzz (tools/fuzz) at the tests' own server: none is unclear, silent, slow, or its end."""

from __future__ import annotations

import pytest

from mulan_nodes.tools.fuzz import report
from mulan_nodes.tools.fuzz.judging import FAULTS
from mulan_nodes.tools.fuzz.running import Runner

SEED, CASES = 14, 400


@pytest.fixture(scope="module")
def runner(server, models, tiny_models):
    before = server.socket.gettimeout()
    yield Runner(lambda: server, models, lambda _: pytest.fail("the server is gone or does not stop"), limit=False)
    server.socket.settimeout(before)


def test_nothing_from_outside_breaks_it(runner):
    cases = runner.cases()
    results = [runner.run_one(cases.make(id)) for id in cases.drawn(SEED, CASES)]
    assert len(results) == CASES
    assert not [result for result in results if result.verdict.result in FAULTS], report.faults(results)


def test_a_graph_of_each_node_works(runner):
    cases = runner.cases()
    results = [runner.run_one(cases.make(id)) for id in cases.ids(("right",))]
    assert {result.verdict.result for result in results} == {"ok"}, report.faults(results)
