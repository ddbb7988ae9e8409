"""The tiny companions at work: a style, few steps and a layout under prompts in every trained language.

They were trained beside the base alone, on English captions. Thresholds are far below what was measured (in brackets).
"""

from __future__ import annotations

import numpy as np
import pytest

from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import decode
from mulan_nodes.tools.evaluate import mulan as evaluate_mulan
from mulan_nodes.tools.evaluate.cases import MULAN, Case, tiny_world_cases, tiny_world_draws
from mulan_nodes.tools.graphs import add, differ
from mulan_nodes.tools.tinyworld.captions import TRAINED
from mulan_nodes.tools.tinyworld.scenes import Place, is_pattern, share_of_quarters
from mulan_nodes.tools.tinyworld.world import read

CASES = [
    case
    for language, draw in zip(TRAINED, tiny_world_draws(len(TRAINED), seed=11), strict=True)
    for case in tiny_world_cases(MULAN, language, [draw])
]
LOADED = ["20", 0]  # the MODEL behind a LoRA


@pytest.fixture(scope="module")
def base() -> dict:
    return graphs.load(evaluate_mulan.GRAPH)


def drawn(server, wired: list[dict]) -> list[np.ndarray]:
    """The picture of each graph; the cases' prompts and seeds go into them in their order."""
    tickets = [server.post(evaluate_mulan.graph_of(case, graph)) for case, graph in zip(CASES, wired, strict=True)]
    return [decode(data) for ticket in tickets for files in server.wait(ticket).files.values() for data in files]


@pytest.fixture(scope="module")
def plain(server, base) -> list[np.ndarray]:
    return drawn(server, [base] * len(CASES))


def with_lora(graph: dict, name: str, strength: float = 1.0) -> dict:
    lora = ("20", "LoraLoaderModelOnly", {"model": ["2", 0], "lora_name": name, "strength_model": strength})
    return add(graph, lora, KSampler_model=LOADED)


def mean(measured, pictures: list[np.ndarray], *others) -> float:
    return float(np.mean([measured(*each) for each in zip(pictures, *others, strict=True)]))


def right(picture: np.ndarray, case: Case) -> bool:
    return read(picture).agrees(case.expected)


def test_the_style_shows_and_what_was_asked_for_stays(server, base, plain):
    patterns = drawn(server, [with_lora(base, "tiny_pattern_lora.safetensors")] * len(CASES))
    assert not any(map(is_pattern, plain))
    assert mean(is_pattern, patterns) >= 0.6
    assert mean(lambda picture, case: share_of_quarters(picture, case.expected), patterns, CASES) >= 0.6


def test_a_style_of_strength_zero_is_none(server, base, plain):
    without, *_ = drawn(server, [with_lora(base, "tiny_pattern_lora.safetensors", 0.0)] * len(CASES))
    assert np.array_equal(without, plain[0])


def in_few_steps(graph: dict, steps: int) -> dict:
    """The sampling that LCM LoRAs are made for."""
    model = graph[graphs.find(graph, "KSampler")]["inputs"]["model"]
    sampling = ("21", "ModelSamplingDiscrete", {"model": model, "sampling": "lcm", "zsnr": False})
    graph = add(graph, sampling, KSampler_model=["21", 0])
    return graphs.change(graph, "KSampler", sampler_name="lcm", scheduler="sgm_uniform", steps=steps, cfg=1.0)


def test_four_steps_are_enough(server, base):
    pictures = drawn(server, [in_few_steps(with_lora(base, "tiny_lcm_lora.safetensors"), 4)] * len(CASES))
    assert mean(right, pictures, CASES) >= 0.75


def test_one_step_leads_nearer_to_the_picture_that_twenty_lead_to(server, base, plain):
    """What consistency means: one step from the same noise ends where all of them end."""
    with_it = drawn(server, [in_few_steps(with_lora(base, "tiny_lcm_lora.safetensors"), 1)] * len(CASES))
    without = drawn(server, [in_few_steps(base, 1)] * len(CASES))
    assert mean(lambda a, b: differ(a.astype(float), b), with_it, plain) < 0.8 * mean(
        lambda a, b: differ(a.astype(float), b), without, plain
    )


def with_hint(graph: dict, place: Place, strength: float = 1.0) -> dict:
    """A white square on black, drawn by ComfyUI's own nodes."""
    rows, columns = (np.flatnonzero(place.mask("square").any(axis=axis)) for axis in (1, 0))
    return add(
        graph,
        ("30", "SolidMask", {"value": 0.0, "width": 64, "height": 64}),
        ("31", "SolidMask", {"value": 1.0, "width": len(columns), "height": len(rows)}),
        (
            "32",
            "MaskComposite",
            {
                "destination": ["30", 0],
                "source": ["31", 0],
                "x": int(columns[0]),
                "y": int(rows[0]),
                "operation": "add",
            },
        ),
        ("33", "MaskToImage", {"mask": ["32", 0]}),
        ("34", "ControlNetLoader", {"control_net_name": "tiny_layout_controlnet.safetensors"}),
        (
            "35",
            "ControlNetApplyAdvanced",
            {
                "positive": ["3", 0],
                "negative": ["4", 0],
                "control_net": ["34", 0],
                "image": ["33", 0],
                "strength": strength,
                "start_percent": 0.0,
                "end_percent": 1.0,
            },
        ),
        KSampler_positive=["35", 0],
        KSampler_negative=["35", 1],
    )


def test_the_thing_lands_where_the_hint_is(server, base, plain):
    rng = np.random.default_rng(3)
    places = [Place.drawn(rng) for _ in CASES]
    pictures = drawn(server, [with_hint(base, place) for place in places])

    def overlap(picture, place, case):
        return place.overlap(case.expected.shape, picture)

    assert mean(overlap, plain, places, CASES) <= 0.4
    assert mean(overlap, pictures, places, CASES) >= 0.5
    assert mean(right, pictures, CASES) >= 0.6


def test_a_hint_of_strength_zero_is_none(server, base, plain):
    without, *_ = drawn(server, [with_hint(base, Place(20, 20, 12), strength=0.0)] * len(CASES))
    assert np.array_equal(without, plain[0])
