"""Pictures of the trained tiny world: what the whole pipeline is for. Few pictures a language, so the thresholds are
far from what `dev.py eval` gives.
"""

from __future__ import annotations

import pytest

from mulan_nodes.tools import graphs
from mulan_nodes.tools.evaluate import mulan as evaluate_mulan
from mulan_nodes.tools.evaluate.cases import (
    MULAN,
    OWN_CLIP,
    TinyWorldReader,
    summarise,
    tiny_world_cases,
    tiny_world_draws,
)
from mulan_nodes.tools.tinyworld.captions import LANGUAGES, TRAINED

PICTURES = 6
OTHERS = [language for language in TRAINED if language != "en"]
UNSEEN = [language for language in LANGUAGES if language not in TRAINED]


@pytest.fixture(scope="module")
def right(server) -> dict[tuple[str, str], float]:
    """(row, language) -> the share of pictures whose colour and shape are those asked for."""
    draws = tiny_world_draws(PICTURES, seed=7)
    lines = [(MULAN, language) for language in LANGUAGES] + [
        (OWN_CLIP, language) for language in ("en", "zh", "ru", "de", "ar")
    ]
    cases = [case for row, language in lines for case in tiny_world_cases(row, language, draws)]
    results = list(evaluate_mulan.draw_all(server, cases, TinyWorldReader(), graphs.load(evaluate_mulan.GRAPH)))
    rows = summarise([result.case for result in results], [result.scores for result in results])
    return {(row.row, row.language): row.scores["right"] for row in rows}


def mean(right, row: str, languages) -> float:
    shares = [right[row, language] for language in languages if (row, language) in right]
    return sum(shares) / len(shares)


def test_english_and_every_trained_language_draw_what_they_say(right):
    assert right[MULAN, "en"] >= 0.8, right
    assert mean(right, MULAN, OTHERS) >= 0.85, right
    assert not {language: right[MULAN, language] for language in TRAINED if right[MULAN, language] < 0.5}


def test_without_mulan_only_english_does(right):
    assert right[OWN_CLIP, "en"] >= 0.8, right
    assert mean(right, OWN_CLIP, OTHERS) <= 0.3, right


def test_languages_that_no_training_saw_are_not_understood(right):
    """It is the text encoder that carries the meaning, not the pictures."""
    assert mean(right, MULAN, UNSEEN) <= mean(right, MULAN, OTHERS) - 0.3, right
