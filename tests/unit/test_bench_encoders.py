"""dev.py bench --encoders: that it runs, and that what it counts is right. Measuring is no test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mulan_nodes.tools.bench import encoders

SMALL = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}


def test_the_published_sizes_are_counted():
    """InternVL's text encoder and Qwen2.5-0.5B as their authors count them; int8 is half of float16."""
    counted = {
        name: sum(count for _, count in encoders._tensors(encoders._config(encoders.MODELS[name])))
        for name in ("7B", "7B, 8 of its layers", "1B, Qwen2.5")
    }
    assert counted == {
        "7B": pytest.approx(6.68e9, rel=0.01),
        "7B, 8 of its layers": pytest.approx(1.82e9, rel=0.01),
        "1B, Qwen2.5": pytest.approx(0.494e9, rel=0.01),
    }
    sizes = encoders._bytes(encoders._config(encoders.MODELS["7B"]))
    assert sizes["fp16"] == 2 * counted["7B"] and sizes["int8"] / sizes["fp16"] == pytest.approx(0.5, abs=0.01)
    assert sizes["int4"] < 0.3 * sizes["fp16"]


def test_the_bench_runs_and_tells(monkeypatch, tmp_path):
    models = {"7B": replace(encoders.MODELS["7B"], sizes=SMALL)}
    monkeypatch.setattr(encoders, "MODELS", models)
    monkeypatch.setattr(encoders, "LAYERS", 1)
    (results,) = encoders.measure(encoders.parse(["--quick"]), tmp_path, {}, lambda _: None)
    told = encoders.markdown(results)
    assert "| 7B (InternVL-14B-224px (MuLan's own)) | LLaMA | 64 | 2 |" in told and "| 1.00 |" in told
    assert all(results["models"]["7B"][kind]["one"] > 0 for kind in encoders.FORMATS_TIMED)
