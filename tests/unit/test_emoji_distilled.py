"""The student of the small text encoder: what it learns from, and that it is read as it was written."""

from __future__ import annotations

import torch

from mulan_nodes.mulan.conditioning.families import SD15
from mulan_nodes.mulan.conditioning.model_files import open_text_encoder
from mulan_nodes.mulan.training.prompt_lists import read_translations
from mulan_nodes.mulan.training.teacher import Teacher
from mulan_nodes.tools.emoji_world import distilled
from mulan_nodes.tools.emoji_world.concepts import CHARACTERS, languages
from mulan_nodes.tools.emoji_world.shares import read_shipped
from mulan_nodes.tools.emoji_world.standing_in import parameters, read_text_encoder, write_text_encoder
from mulan_nodes.tools.tinyworld.adapter_training import TextStates
from mulan_nodes.tools.tinyworld.text_training import PREFIX, states_of, token_rows


def test_each_line_says_the_same_in_every_language(tmp_path, monkeypatch):
    for name in ("CAPTIONS", "SENTENCES", "SHAPES"):
        monkeypatch.setattr(distilled, name, 30)
    monkeypatch.setattr(distilled, "trained_languages", lambda: ("en", "sw", "zh"))
    for folder in ("once", "again"):
        distilled.write_translations(tmp_path / folder)
    texts = {code: (tmp_path / "once" / f"{code}.txt").read_text("utf-8") for code in ("en", "sw", "zh")}
    assert all(text == (tmp_path / "again" / f"{code}.txt").read_text("utf-8") for code, text in texts.items())
    lines = {code: text.splitlines() for code, text in texts.items()}
    assert {len(each) for each in lines.values()} == {distilled.NAMES * len(CHARACTERS) + 90}
    english, swahili = languages()["en"].names, languages()["sw"].names
    pairs = {*zip(lines["en"], lines["sw"], strict=True)}
    assert {(one, other) for one, other in zip(english, swahili, strict=True) if other} <= pairs
    assert lines["sw"].count("") >= 30 > lines["zh"].count(""), "Swahili has no captions of shapes"
    assert {*read_translations(tmp_path / "once", 20)} == {"en", "sw", "zh"}


def test_a_student_is_read_as_it_was_written(tmp_path, monkeypatch):
    for name in ("CAPTIONS", "SENTENCES", "SHAPES"):
        monkeypatch.setattr(distilled, name, 0)
    monkeypatch.setattr(distilled, "trained_languages", lambda: ("en", "sw"))
    monkeypatch.setattr(distilled, "BATCH", 4)
    _, whole, _, adapter = read_shipped()
    teacher = write_text_encoder(tmp_path / "teacher.safetensors", whole)
    distilled.write_translations(tmp_path / "prompts")
    file = distilled.distill(teacher, tmp_path / "prompts", tmp_path / "out", steps=1)
    student = read_text_encoder(file, whole.tokenizer)
    assert parameters(student.model) <= 0.3 * parameters(whole.model)
    (row,) = token_rows(whole.tokenizer, [PREFIX + "a lion"])
    encoded = Teacher(open_text_encoder(file), SD15).encode(["a lion"])
    with torch.no_grad():
        ours = states_of(student.model, [row], torch.arange(len(row), 80))
        assert adapter(TextStates(student)([PREFIX + "a lion"])).shape == (1, 120, 96)
    assert torch.allclose(ours, encoded.states, atol=1e-3)
