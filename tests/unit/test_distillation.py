"""A smaller text encoder that learns to stand for a larger one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError
from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, to_published
from mulan_nodes.mulan.conditioning.clip import encode_prompts, load_clip
from mulan_nodes.mulan.conditioning.encoder_files import pair_warning
from mulan_nodes.mulan.conditioning.encoder_kinds import FINGERPRINT_KEY
from mulan_nodes.mulan.conditioning.families import PIXART, SD15
from mulan_nodes.mulan.conditioning.model_files import open_adapter, open_text_encoder
from mulan_nodes.mulan.conversion.converters import convert
from mulan_nodes.mulan.conversion.encoder_error import encoder_error
from mulan_nodes.mulan.training import run
from mulan_nodes.mulan.training.__main__ import main
from mulan_nodes.mulan.training.distillation import compare, row_loss
from mulan_nodes.mulan.training.encoder_training import FILE, LIKENESS_FILE
from mulan_nodes.mulan.training.prompt_lists import Prompt, PromptStream, read_prompts, read_translations
from mulan_nodes.mulan.training.students import new_narrow_student, new_student, open_student, spread_layers
from mulan_nodes.mulan.training.teacher import Teacher
from mulan_nodes.tests.unit.train_bases import text_encoder
from mulan_nodes.tools.random_checkpoints import internvl_chat as random_chat


def plain(texts: Sequence[str]) -> list[Prompt]:
    return [Prompt(text, text) for text in texts]


PROMPTS = ("a red circle", "一个红色的圆", "", "ein sehr großer blauer Stern vor einem Haus " * 9)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory) -> Path:
    return text_encoder(tmp_path_factory.mktemp("teacher") / "teacher.safetensors", 64, layers=3)


@pytest.fixture
def texts(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "en.txt").write_text("\n".join(f"a picture of {number} cats" for number in range(30)), "utf-8")
    (folder / "zh.txt").write_text("\ufeff一只猫\n\n两只猫\n一只猫\n三只狗\n", "utf-8")
    return folder


def command(teacher: Path, texts: Path, out: Path, *more: str) -> list[str]:
    return [
        *("encoder", "--teacher", str(teacher), "--texts", str(texts), "--out", str(out), "--precision", "fp32"),
        *("--batch-size", "4", "--accumulate", "1", "--warmup", "0", "--learning-rate", "1e-3", *more),
    ]


@pytest.mark.parametrize("family", [SD15, PIXART], ids=["sd", "pixart"])
def test_a_student_of_all_layers_is_its_teacher(family, teacher_file):
    teacher = Teacher(open_text_encoder(teacher_file), family)
    student = new_student(teacher.file, 3, pad=0)
    encoded = teacher.encode(PROMPTS)
    states = student(encoded.ids, encoded.positions)
    assert torch.allclose(states[encoded.is_read], encoded.states[encoded.is_read], atol=1e-4)
    assert row_loss(states, encoded).item() < 1e-6
    found = compare(student, teacher, plain(PROMPTS))
    assert found.words > 1 - 1e-6 and found.left < 1e-8 and (found.padding is None) == (family is PIXART)


def test_the_rows_that_count_are_those_that_an_adapter_reads(teacher_file):
    teacher = Teacher(open_text_encoder(teacher_file), SD15)
    encoded = teacher.encode(PROMPTS)
    assert encoded.ids.shape == (4, 80) and encoded.is_read.sum(1).tolist() == [77, 77, 80, 77]
    assert encoded.is_read[0, :5].tolist() == [True, False, False, False, True], "bos, then no prefix"
    assert (encoded.ids[encoded.is_padding] == 0).all() and encoded.is_padding[3].sum() == 0
    assert encoded.is_padding[2].sum() == 78, "bos and eos of the empty prompt"
    student = new_student(teacher.file, 1, pad=0)
    before = row_loss(student(encoded.ids, encoded.positions), encoded)
    encoded.states[:, 1:4][:2] += 9  # the prefix's
    assert row_loss(student(encoded.ids, encoded.positions), encoded).item() == pytest.approx(before.item(), rel=1e-5)
    for rows in (encoded.is_padding, encoded.is_read & ~encoded.is_padding):  # words and padding count alike
        other = encoded.states.clone()
        other[rows] += 1
        assert row_loss(other, encoded).item() > 0.1


def test_rows_of_padding_that_are_left_out_change_no_other(teacher_file):
    teacher = Teacher(open_text_encoder(teacher_file), SD15)
    student = new_student(teacher.file, 2, pad=0)
    short = PROMPTS[:3]
    whole, some = teacher.encode(short), teacher.encode(short, padding=6, seed=3)
    longest = int((whole.ids != 0).sum(1).max())
    assert some.ids.shape == (3, longest + 6) and some.positions.tolist()[:longest] == [*range(longest)]
    assert (some.positions.diff() > 0).all() and some.positions[-6:].tolist() != [*range(longest, longest + 6)]
    assert torch.allclose(some.states, whole.states[:, some.positions], atol=1e-5)
    assert torch.equal(some.is_read, whole.is_read[:, some.positions])
    assert torch.equal(some.is_padding, whole.is_padding[:, some.positions])
    ours = student(some.ids, some.positions)
    assert torch.allclose(ours, student(whole.ids, whole.positions)[:, some.positions], atol=1e-5)
    assert not torch.equal(some.positions, teacher.encode(short, padding=6, seed=4).positions)
    assert teacher.encode(PROMPTS, padding=6).ids.shape == (4, 80), "a prompt that fills its window has none"
    assert Teacher(teacher.file, PIXART).encode(short, padding=6).ids.shape == (3, longest)


def test_a_student_keeps_the_channels_with_the_largest_weights(teacher_file, texts, tmp_path, capsys):
    file = open_text_encoder(teacher_file)
    weights, whole = file.state_dict(), file.config.intermediate_size
    gate, up, down = (weights[f"model.layers.0.mlp.{name}_proj.weight"].float() for name in ("gate", "up", "down"))
    size = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
    kept = sorted(size.argsort(descending=True)[:16].tolist())
    ours = new_student(file, 1, 0, intermediate_size=16).model.state_dict()
    assert torch.equal(ours["layers.0.mlp.gate_proj.weight"], gate[kept])
    assert torch.equal(ours["layers.0.mlp.up_proj.weight"], up[kept])
    assert torch.equal(ours["layers.0.mlp.down_proj.weight"], down[:, kept])
    for channels in (0, whole + 1):
        with pytest.raises(ValueError, match=f"--intermediate-size {channels}: the teacher's layers have {whole}"):
            new_student(file, 1, 0, intermediate_size=channels)
    narrow = ["--layers", "2", "--intermediate-size", "16", "--steps", "1"]
    assert main(command(teacher_file, texts, tmp_path / "out", *narrow)) == 0
    assert f"2 of 3 layers, 16 of {whole} channels" in capsys.readouterr().out
    small = open_text_encoder(tmp_path / "out" / FILE)
    assert (small.config.num_hidden_layers, small.config.intermediate_size) == (2, 16)
    assert Teacher(small, SD15).encode(PROMPTS).states.shape == (4, 80, 64)


def test_a_student_begins_with_the_layers_that_are_kept(teacher_file):
    file = open_text_encoder(teacher_file)
    ours, weights = new_student(file, 2, pad=0).model.state_dict(), file.state_dict()
    for place, layer in enumerate(spread_layers(3, 2)):
        wanted = weights[f"model.layers.{layer}.self_attn.q_proj.weight"]
        assert torch.equal(ours[f"layers.{place}.self_attn.q_proj.weight"], wanted.float())
    assert torch.equal(ours["norm.weight"], weights["model.norm.weight"].float())


def test_layers_are_spread_over_the_teachers():
    assert spread_layers(32, 8) == [0, 4, 9, 13, 18, 22, 27, 31] and spread_layers(3, 1) == [0]
    assert spread_layers(3, 3) == [0, 1, 2]
    for kept in (0, 4):
        with pytest.raises(ValueError, match=f"--layers {kept}: the teacher has 3"):
            spread_layers(3, kept)


def test_the_command_trains_what_adapters_read(teacher_file, texts, tmp_path, capsys):
    """It comes nearer to the teacher in every language; the nodes load it; a converted one, too."""
    out = tmp_path / "out"
    training = ["--layers", "2", "--steps", "60", "--validate-every", "59", "--held-out", "5", "--ema", "0.9"]
    assert main(command(teacher_file, texts, out, *training)) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "2 of 3 layers" in told and "in 2 languages" in told and "models/text_encoders" in told
    likeness = json.loads((out / LIKENESS_FILE).read_text("utf-8"))
    assert likeness["step"] == 60 and {*likeness["languages"]} == {"en", "zh"}

    teacher = Teacher(open_text_encoder(teacher_file), SD15)
    untrained, held_out = new_student(teacher.file, 2, pad=0), read_prompts(texts, 5)["en"].held_out
    assert likeness["languages"]["en"]["left"] < 0.5 * compare(untrained, teacher, held_out).left

    small = open_text_encoder(out / FILE)
    assert small.config.num_hidden_layers == 2 and small.projection_dim == 768
    assert small.file.metadata["teacher"] == "teacher.safetensors" and small.tokenizer() == teacher.file.tokenizer()
    assert torch.equal(load_file(out / FILE)["model.embed_tokens.weight"], untrained.kept_table)
    adapter = tmp_path / "adapter.safetensors"
    weights = to_published(
        LanguageAdapter(AdapterShape(64, context_dim=768, num_queries=4, intermediate_size=64)).state_dict()
    )
    save_file(
        {name: tensor.clone() for name, tensor in weights.items()},
        adapter,
        {FINGERPRINT_KEY: teacher.file.fingerprint()},
    )
    ours, theirs = (
        encode_prompts(load_clip(path, adapter, device="cpu"), ["a red circle"])[0][0][0]
        for path in (out / FILE, teacher_file)
    )
    assert ours.shape == theirs.shape and not torch.equal(ours, theirs)
    assert not pair_warning(small, open_adapter(adapter))
    converted = convert(out / FILE, tmp_path / "int8.safetensors", weight_format="int8").path
    assert not pair_warning(open_text_encoder(converted), open_adapter(adapter))


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(teacher_file, texts, tmp_path, monkeypatch, capsys):
    training = ["--layers", "1", "--steps", "4", "--save-every", "2", "--validate-every", "0"]
    assert main(command(teacher_file, texts, tmp_path / "whole", *training)) == 0
    advance = run.TrainingRun.advance
    monkeypatch.setattr(run.TrainingRun, "advance", lambda self, loss, stop: advance(self, loss, self.step == 1))
    assert main(command(teacher_file, texts, tmp_path / "cut", *training)) == 130
    assert "stopped after step 2 of 4. Continue with --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(command(teacher_file, texts, tmp_path / "cut", *training)) == 1
    assert "already holds a training run" in capsys.readouterr().err
    assert main(command(teacher_file, texts, tmp_path / "cut", *training, "--resume")) == 0
    whole, cut = (load_file(tmp_path / name / FILE) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_an_earlier_result_is_trained_further(teacher_file, texts, tmp_path, capsys):
    first = tmp_path / "first"
    assert main(command(teacher_file, texts, first, "--layers", "2", "--steps", "1")) == 0
    on = ["--student", str(first / FILE), "--steps", "1"]
    assert main(command(teacher_file, texts, tmp_path / "on", *on)) == 0
    assert "2 of 3 layers" in capsys.readouterr().out


def test_languages_come_equally_often_and_held_out_prompts_never(texts):
    prompts = read_prompts(texts, 5)
    assert [*prompts["en"].held_out] == plain([f"a picture of {number} cats" for number in range(25, 30)])
    assert [*prompts["zh"].learned] == plain(["一只猫", "两只猫"]) and [*prompts["zh"].held_out] == plain(["三只狗"])
    stream = PromptStream(prompts, seed=0, empty_share=0.1)
    drawn = [stream.prompt(index) for index in range(2000)]
    assert drawn == [PromptStream(prompts, 0, 0.1).prompt(index) for index in range(2000)]
    held_out = {prompt for each in prompts.values() for prompt in each.held_out}
    assert not held_out & {*drawn} and 150 < drawn.count(Prompt("", "")) < 250
    assert 800 < sum(prompt in prompts["zh"].learned for prompt in drawn) < 1000


def test_a_translation_answers_by_its_end_and_by_padding_behind_both(teacher_file):
    teacher = Teacher(open_text_encoder(teacher_file), SD15)
    meant, texts = ["a red circle", "a red circle", ""], ["ein grosser roter Kreis", "a red circle", ""]
    plainly, encoded = teacher.encode(meant), teacher.encode(meant, translations=texts)
    assert torch.equal(encoded.ids, teacher.encode(texts).ids)
    for same in (1, 2):  # what is no translation answers as before
        assert torch.equal(encoded.is_read[same], plainly.is_read[same])
        assert torch.equal(encoded.states[same], plainly.states[same])
    german, english = (int((ids[0] != 0).sum()) for ids in (encoded.ids, plainly.ids))
    assert german > english
    read = encoded.is_read[0].nonzero().flatten().tolist()
    assert read == [german - 1, *range(german, 80)] and encoded.is_padding[0].nonzero()[0] == german
    assert torch.equal(encoded.states[0, german - 1], plainly.states[0, english - 1])
    assert torch.equal(encoded.states[0, german:], plainly.states[0, german:])
    shorter = teacher.encode(texts[:1], translations=meant[:1])
    assert shorter.is_read[0].nonzero().flatten().tolist() == [english - 1, *range(german, 80)]
    assert torch.equal(shorter.states[0, english - 1], teacher.encode(texts[:1]).states[0, german - 1])

    some = teacher.encode(meant, padding=6, seed=1, translations=texts)
    assert some.positions.tolist()[:german] == [*range(german)] and len(some.positions) == german + 6
    for row in range(3):
        for column in some.is_read[row].nonzero().flatten().tolist():
            position = int(some.positions[column])
            assert encoded.is_read[row, position]
            assert torch.allclose(some.states[row, column], encoded.states[row, position], atol=1e-5)
    assert some.is_read[0].sum() == 7 and some.is_read[1].sum() > 7
    pixart = Teacher(teacher.file, PIXART).encode(meant, translations=texts)
    assert pixart.is_read[0].nonzero().flatten().tolist() == [german - 1], "whose padding no model reads"


def test_translations_are_read_line_by_line(tmp_path):
    folder = tmp_path / "lines"
    folder.mkdir()
    (folder / "en.txt").write_text("".join(f"{number} cats\n" for number in range(10)), "utf-8")
    german = ("" if i in (1, 9) else f"{i}\u2028Katzen" for i in range(10))
    (folder / "de.txt").write_text("".join(f"{line}\n" for line in german), "utf-8", newline="\r\n")
    prompts = read_translations(folder, 2)
    assert prompts["de"].learned[:2] == (Prompt("0\u2028Katzen", "0 cats"), Prompt("2\u2028Katzen", "2 cats"))
    assert [*prompts["en"].held_out] == plain(["8 cats", "9 cats"])
    assert prompts["de"].held_out == (Prompt("8\u2028Katzen", "8 cats"),)
    stream = PromptStream(prompts, 0, empty_share=0.1, english_share=0.3)
    drawn = [stream.prompt(index) for index in range(4000)]
    share = sum(each.text.endswith("cats") for each in drawn) / len(drawn)
    assert share == pytest.approx(0.9 * (0.3 + 0.7 / 2), abs=0.03)


def test_a_narrow_student_embeds_in_the_widest_directions_of_its_teacher(teacher_file):
    file = open_text_encoder(teacher_file)
    student, again = (new_narrow_student(file, 2, 0, 24) for _ in range(2))
    sizes = student.sizes
    assert (sizes.hidden_size, sizes.intermediate_size, sizes.output_size, sizes.num_hidden_layers) == (24, 24, 64, 2)
    assert sizes.num_attention_heads == 1 and new_narrow_student(file, 1, 0, 48, 20).sizes.num_attention_heads == 2
    assert all(torch.equal(ours, same) for ours, same in zip(student.parameters(), again.parameters(), strict=True))
    table = file.state_dict()["model.embed_tokens.weight"].float()
    kept = student.model.embed_tokens.weight.square().sum() / table.square().sum()
    assert kept > 24 / 64 and student.kept_table is None
    for width in (0, 7, 64):
        with pytest.raises(ValueError, match=f"--hidden-size {width}: expected an even number below the teacher's 64"):
            new_narrow_student(file, 1, 0, width)
    with pytest.raises(ValueError, match="--layers 0: a student has 1 or more"):
        new_narrow_student(file, 0, 0, 24)


def test_a_narrow_text_encoder_teaches_narrower_ones(teacher_file, texts, tmp_path, capsys):
    narrow = ["--layers", "1", "--steps", "1", "--hidden-size"]
    assert main(command(teacher_file, texts, tmp_path / "out", *narrow, "32")) == 0
    teacher = tmp_path / "out" / FILE
    assert main(command(teacher, texts, tmp_path / "wider", *narrow, "48")) == 1
    assert "--hidden-size 48: expected an even number below the teacher's 32" in capsys.readouterr().err
    assert main(command(teacher, texts, tmp_path / "narrower", *narrow, "16")) == 0
    small = open_text_encoder(tmp_path / "narrower" / FILE)
    assert (small.config.hidden_size, small.states_size) == (16, 64)


def test_the_command_trains_a_narrow_student_on_translations(teacher_file, texts, tmp_path, capsys):
    """The nodes load it in the teacher's place, converted too, and it is trained further."""
    (texts / "zh.txt").write_text("\n".join(f"{number}只猫的图片" for number in range(30)), "utf-8")
    out, narrow = tmp_path / "out", ["--translations", "--hidden-size", "32", "--layers", "2", "--steps", "40"]
    assert main(command(teacher_file, texts, out, *narrow, "--learning-rate", "3e-3")) == 0, capsys.readouterr().err
    assert "2 of 3 layers, 32 of 64 channels, 32 of 64 channels in MLPs" in capsys.readouterr().out
    small, teacher = open_text_encoder(out / FILE), Teacher(open_text_encoder(teacher_file), SD15)
    assert (small.config.hidden_size, small.states_size, small.projection_dim) == (32, 64, 768)
    untrained = new_narrow_student(teacher.file, 2, 0, 32)
    trained = open_student(small, teacher.file, 0)
    held_out = read_translations(texts, 5)["zh"].held_out
    before, after = (compare(student, teacher, held_out).left for student in (untrained, trained))
    assert after < 0.5 * before

    prompts = ["a red circle", "", "a (blue:1.4) star BREAK 一只猫"]
    encoded = teacher.encode(prompts[:1])
    of_file = Teacher(small, SD15).encode(prompts[:1]).states
    assert torch.allclose(trained(encoded.ids, encoded.positions), of_file, atol=5e-3)
    adapter = tmp_path / "adapter.safetensors"
    torch.manual_seed(0)
    shape = AdapterShape(64, context_dim=768, num_queries=4, intermediate_size=64)
    weights = {name: tensor.clone() for name, tensor in to_published(LanguageAdapter(shape).state_dict()).items()}
    save_file(weights, adapter, {FINGERPRINT_KEY: teacher.file.fingerprint()})
    assert not pair_warning(small, open_adapter(adapter))
    contexts = [each[0][0] for each in encode_prompts(load_clip(out / FILE, adapter, device="cpu"), prompts)]
    assert [each.shape for each in contexts] == [(1, 4, 768), (1, 4, 768), (1, 8, 768)]
    for weight_format, bound in (("fp16", 1e-6), ("int8", 0.1)):
        path = convert(out / FILE, tmp_path / f"{weight_format}.safetensors", weight_format=weight_format).path
        again = encode_prompts(load_clip(path, adapter, device="cpu"), prompts)
        assert (again[2][0][0] - contexts[2]).norm() <= bound * contexts[2].norm()
        assert max(encoder_error(open_text_encoder(path), small).values()) <= bound
    on = ["--student", str(out / FILE), "--steps", "1", "--translations"]
    assert main(command(teacher_file, texts, tmp_path / "on", *on)) == 0
    assert "32 of 64 channels" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_narrow_file_that_lacks_a_part_is_refused(part, teacher_file, texts, tmp_path, capsys):
    narrow = ["--hidden-size", "32", "--layers", "1", "--steps", "1"]
    assert main(command(teacher_file, texts, tmp_path / "out", *narrow)) == 0
    weights = load_file(tmp_path / "out" / FILE)
    whole = weights.pop(f"output_projection.{part}")
    for name, other in (("lacking", {}), ("cut", {f"output_projection.{part}": whole[:-1].clone()})):
        save_file(weights | other, tmp_path / f"{name}.safetensors")
        with pytest.raises(WrongFileError) as raised:
            load_clip(tmp_path / f"{name}.safetensors", None)
        assert f"{name}.safetensors" in str(raised.value)


def test_what_cannot_be_trained_is_refused_in_words(teacher_file, texts, tmp_path, capsys):
    def refused(teacher, folder, *more) -> str:
        assert main(command(teacher, folder, tmp_path / "out", *more, "--steps", "1")) == 1
        return capsys.readouterr().err

    quantized = convert(teacher_file, tmp_path / "int8.safetensors", weight_format="int8").path
    told = refused(quantized, texts, "--layers", "2")
    assert "has quantized layers, which cannot learn: take the float16 file" in told
    chat = random_chat.checkpoint(tmp_path / "chat")
    assert "is the language model of a chat file: its tokens are not those" in refused(chat, texts)
    assert "is the language model of a chat file" in refused(teacher_file, texts, "--student", str(chat))
    more = ["--student", str(teacher_file), "--intermediate-size", "16"]
    assert "--intermediate-size is for a new student" in refused(teacher_file, texts, *more)
    assert "has a quantized embedding table" in refused(quantized, texts, "--hidden-size", "8")
    assert "--hidden-size is for a new student" in refused(teacher_file, texts, *more[:2], "--hidden-size", "8")
    assert "zh.txt has 5 lines, but en.txt has 30: each line is to translate" in refused(
        teacher_file, texts, "--translations"
    )
    (texts / "zh.txt").write_text("\n" * 25 + "一\n二\n三\n四\n五\n", "utf-8")
    assert "zh.txt has no translation but the last, which only judge" in refused(teacher_file, texts, "--translations")
    (texts / "zh.txt").write_text("一\n二\n" + "\n" * 28, "utf-8")
    assert "zh.txt has no translation among the last" in refused(teacher_file, texts, "--translations")
    (texts / "en.txt").rename(texts / "de.txt")
    assert "has no en.txt, whose lines those of the other" in refused(teacher_file, texts, "--translations")
    assert "--layers 9: the teacher has 3" in refused(teacher_file, texts, "--layers", "9")
    other = text_encoder(tmp_path / "other.safetensors", 96)
    assert "states of width 96, but the teacher has" in refused(teacher_file, texts, "--student", str(other))
    empty = tmp_path / "empty"
    assert "empty is not a folder with text files" in refused(teacher_file, empty)
    empty.mkdir()
    (empty / "en.txt").write_text("one\n", "utf-8")
    assert "en.txt has 1 prompts, expected 2 or more" in refused(teacher_file, empty)
    (empty / "en.txt").write_bytes(b"\xff\xfea\x00")
    assert "en.txt is not UTF-8 text" in refused(teacher_file, empty)
    (empty / "en.txt").rename(empty / "my prompts.txt")
    assert "my prompts" in refused(teacher_file, empty)
    assert not (tmp_path / "out").exists()
