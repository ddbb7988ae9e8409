"""dev.py bench: what its figures rest on. The measuring itself is no test."""

from __future__ import annotations

import pytest
import sentencepiece
import torch

from mulan_nodes.mulan.conditioning.clip import encode_prompts, load_clip
from mulan_nodes.mulan.conditioning.model_files import open_text_encoder
from mulan_nodes.tools.bench import report
from mulan_nodes.tools.bench.cases import CASES
from mulan_nodes.tools.bench.weights import (
    TOKENIZER,
    Sizes,
    sentencepiece_model,
    write_adapter,
    write_own,
    write_published,
)

SMALL = Sizes(layers=2, width=256, feed_forward=64, vocabulary=1100)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("bench") / "adapter", SMALL)


def figures(seconds: dict[str, float]) -> dict:
    """Results in which mulankit takes one second for everything, and ours what is given (half a second otherwise)."""

    def of(amount: float) -> dict[str, float]:
        return {"cpu": amount, "wall": amount}

    loading = {
        "load_cpu": 1.0,
        "load_wall": 1.0,
        "first_cpu": 1.0,
        "first_wall": 1.0,
        "anonymous": 4e9,
        "file": 0.0,
        "peak": 4e9,
    }
    ours = {**loading, "load_cpu": seconds.get("load", 0.1), "anonymous": 0.0, "file": 1e9}
    sizes = {"layers": 2, "width": 4096, "feed_forward": 11008, "vocabulary": 49954}
    return {
        "machine": {"processor": "P", "memory": 2**34, "system": "S", "python": "3", "torch": "2"},
        "sizes": sizes,
        "threads": 1,
        "repeat": 3,
        "encoding": {
            "mulankit": {name: of(1.0) for name in CASES},
            "ours": {name: of(seconds.get(name, 0.5)) for name in CASES},
            "floor": {name: of(0.4) for name in CASES},
            "published": {"one": of(0.6)},
            "int8": {"one": of(0.7)},
            "int4": {"one": of(0.9)},
            "fp8": {"one": of(0.8)},
        },
        "differences": dict.fromkeys(CASES, 1e-6),
        "files": {"int8": 10**9},
        "quantization": {"int8": [0.015, 0.02]},
        "loading": {
            "mulankit": loading,
            "mulankit_half": loading,
            **{name: ours for name in ("folder", "fp16", "int8", "fp8")},
        },
        "sampling": {"steps": 10, "mulankit": {"calls": 10, "seconds": 1.0}, "ours": {"calls": 0, "seconds": 0.0}},
    }


def test_the_longer_vocabulary_reads_text_as_before():
    longer = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(49954))
    tiny = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER / "tokenizer.model"))
    assert longer.get_piece_size() == 49954
    for case in CASES.values():
        assert [longer.encode(prompt) for prompt in case.prompts] == [tiny.encode(prompt) for prompt in case.prompts]


@pytest.mark.parametrize("form", ["int8", "fp16"])
def test_the_gpu_s_files_load_and_encode(form, adapter, tmp_path):
    clip = load_clip(write_own(tmp_path / "encoder.safetensors", SMALL, form, lambda _: None), adapter, "upstream")
    ((context, _),) = encode_prompts(clip, ["a fox"])[0]
    assert context.shape == (1, 120, 768) and context.isfinite().all()
    layers = clip.cond_stage_model.internvl.transformer.model.layers
    weight = layers[0].mlp.up_proj.weight
    assert len(layers) == 2 and getattr(weight, "_qdata", weight).element_size() == {"int8": 1, "fp16": 2}[form]


def test_the_published_folder_is_told_apart_from_what_text_does_not_use(tmp_path):
    file = open_text_encoder(
        write_published(tmp_path / "published", SMALL, torch.float16, vision=True, say=lambda _: None)
    )
    parameters = sum(torch.Size(file.file.shapes[stored]).numel() for stored in file.names.values())
    assert parameters == SMALL.layers * SMALL.layer_parameters + SMALL.vocabulary * SMALL.width + SMALL.width
    assert any(name.startswith("vision_model.") for name in file.file.shapes) and file.config.num_attention_heads == 2


def test_an_interrupted_folder_is_written_again(tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_published(tmp_path / "published", SMALL, torch.float16, vision=False, say=stop)
    assert not (tmp_path / "published").exists()
    assert (
        open_text_encoder(
            write_published(tmp_path / "published", SMALL, torch.float16, vision=False, say=lambda _: None)
        ).config.num_hidden_layers
        == 2
    )


def test_goals_are_judged_by_the_figures():
    assert report.missed(figures({})) == []
    assert report.missed(figures({"twelve": 0.81, "load": 0.3, "one": 2.0})) == ["twelve", "load"]
    table = report.markdown(figures({"twelve": 0.81}))
    row = next(line for line in table.splitlines() if line.startswith(f"| {CASES['twelve'].title}"))
    assert "| **0.81** |" in row and "at most 0.8: missed" in row
    assert "resident 0.25x (at most 0.45: reached)" in table


def test_profiles_stand_under_their_goal():
    operation = {"operation": "aten::mm", "calls": 14, "seconds": 0.8, "share": 0.9}
    results = {**figures({"twelve": 0.81}), "profiles": {name: {"ours": [operation]} for name in report.GOALS}}
    table = report.markdown(results)
    assert (
        f"{CASES['twelve'].title} (missed):" in table
        and f"{CASES['other_negative'].title} (reached):" in table
        and "load (reached):" in table
    )
    assert table.count("| ours | `aten::mm` | 14 | 0.80 | 90% |") == len(report.GOALS) == 4


def test_memory_of_32_layers_adds_the_layers_left_out():
    results = figures({})
    per_layer = 4096 * 4096 * 4 + 4096 * 11008 * 3 + 2 * 4096
    assert report.resident(results, "int8", 32) == 1e9 + 30 * per_layer
    assert report.resident(results, "folder", 32) == 1e9 + 30 * per_layer * 2
    assert report.resident(results, "mulankit", 32) > 4e9 + 30 * per_layer * 4
