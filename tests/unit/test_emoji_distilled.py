"""The students of the small text encoder: what they learn from, and that they are read as they were written."""

from __future__ import annotations

import torch

from mulan_nodes.mulan.conditioning.families import SD15
from mulan_nodes.mulan.conditioning.model_files import open_text_encoder
from mulan_nodes.mulan.training.distillation import Teacher
from mulan_nodes.tests.unit.test_emoji_smaller import whole
from mulan_nodes.tools.emoji_world import distilled
from mulan_nodes.tools.emoji_world.concepts import languages
from mulan_nodes.tools.tinyworld.text_training import PREFIX, states_of, token_rows


def test_each_language_has_its_names_captions_and_sentences(tmp_path, monkeypatch):
    monkeypatch.setattr(distilled, "PROMPTS", 40)
    monkeypatch.setattr(distilled, "PROMPTS_OF_SHAPES", 20)
    monkeypatch.setattr(distilled, "trained_languages", lambda: ("en", "sw", "zh"))
    for folder in ("once", "again"):
        distilled.write_prompts(tmp_path / folder)
    for code in ("en", "sw", "zh"):
        text = (tmp_path / "once" / f"{code}.txt").read_text("utf-8")
        assert text == (tmp_path / "again" / f"{code}.txt").read_text("utf-8")
        lines = text.splitlines()
        assert {name for name in languages()[code].names if name} <= {*lines} and len({*lines}) == len(lines)
        assert len(lines) > 140


def test_a_student_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(distilled, "PROMPTS", 0)
    monkeypatch.setattr(distilled, "trained_languages", lambda: ("en", "sw"))
    monkeypatch.setattr(distilled, "BATCH", 4)
    encoder = whole()
    teacher = distilled.write_teacher(tmp_path / "teacher.safetensors", encoder)
    distilled.write_prompts(tmp_path / "prompts")
    kept = distilled.Kept(2, 48)
    file = distilled.distill(teacher, tmp_path / "prompts", tmp_path / "out", kept, steps=1)
    student = distilled.read_student(file, encoder)
    assert (student.model.config.num_hidden_layers, student.model.config.intermediate_size) == (2, 48)
    (row,) = token_rows(encoder.tokenizer, [PREFIX + "a lion"])
    encoded = Teacher(open_text_encoder(file), SD15).encode(["a lion"])
    with torch.no_grad():
        ours = states_of(student.model, [row], torch.arange(len(row), 80))
    assert torch.allclose(ours, encoded.states, atol=1e-3)
