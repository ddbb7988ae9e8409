"""Sentences around the names of things: what the text encoder is taught to look through, and by whom."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file

from mulan_nodes.mulan.tiny_models.packs import pack_path, read_pack
from mulan_nodes.tools.emoji_world import captions, evaluation, sentence_training, sentences
from mulan_nodes.tools.emoji_world.concepts import CHARACTERS, SEEN, languages, trained_languages
from mulan_nodes.tools.emoji_world.sentence_training import LANGUAGES, SHAPES, THINGS, Batches, Pupil, Round
from mulan_nodes.tools.emoji_world.text_training import name_ratios
from mulan_nodes.tools.tinyworld import pack
from mulan_nodes.tools.tinyworld.text_training import TextEncoder, llama, token_rows

NAME = "strawberry"
SHORT = 24  # tokens


@cache
def tokenizer() -> sentencepiece.SentencePieceProcessor:
    return pack.tokenizer_of(read_pack(pack_path("world"))[0])


def test_the_sentences_that_are_measured_are_in_no_training():
    others = [frame for frames in sentences.OTHERS.values() for frame in frames]
    trained = {*sentences.ENGLISH, *captions.ENGLISH, *others}
    trained |= {frame for code in captions.COLOURED for frame in captions.frames(code)}
    trained |= {
        parts.frame(np.random.default_rng(seed)) for parts in sentences.COMPOSED.values() for seed in range(200)
    }
    measured = {frame for frames in sentences.NEVER_TRAINED.values() for frame in frames}
    assert set(sentences.NEVER_TRAINED) == set(captions.COLOURED) and not measured & trained
    rng = np.random.default_rng(0)
    drawn = {sentences.sentence(NAME, "en", rng) for _ in range(4000)}
    assert len(drawn) > 2000
    assert not drawn & {sentences.in_frame(frame, NAME) for frame in sentences.NEVER_TRAINED["en"]}


def test_sentences_are_put_together_of_what_a_language_says():
    assert set(sentences.COMPOSED) == set(sentences.OTHERS) == set(captions.COLOURED) - {"en"}
    for parts in sentences.COMPOSED.values():
        rng = np.random.default_rng(1)
        frames = {parts.frame(rng) for _ in range(300)}
        assert len(frames) > 100
        for frame in frames:
            assert frame.count("{}") == 1 and frame.replace("{}", "").isprintable()
            assert "{" not in frame.replace("{}", "") and "  " not in frame


def test_a_name_stands_whole_in_every_sentence_and_in_noise():
    rng = np.random.default_rng(1)
    for code in trained_languages():
        name = next(name for name in languages()[code].names if name)
        for _ in range(5):
            assert name in sentences.sentence(name, code, rng)
            noise = sentences.in_noise(name, code, rng)
            assert name in noise and noise != name
    for frames in (*sentences.NEVER_TRAINED.values(), *sentences.OTHERS.values(), sentences.ENGLISH):
        assert all(NAME in sentences.in_frame(frame, NAME) for frame in frames)


def test_what_is_packed_keeps_a_part_of_the_teacher(monkeypatch, tmp_path):
    monkeypatch.setattr(
        sentence_training, "ROUNDS", (Round("first", 1, 1.0, 0.3, 0.2), Round("second", 1, 1.0, 0.2, 0.1))
    )
    later = (Round("names", 1, 0.0, 0.1, 0.1, by_name=True), Round("both", 1, 1.0, 0.1, 0.1, by_name=True))
    monkeypatch.setattr(sentence_training, "LATER_ROUNDS", later)
    monkeypatch.setattr(sentence_training, "agreement", lambda *_: "")
    torch.manual_seed(0)
    encoder = TextEncoder(llama(tokenizer().get_piece_size()), tokenizer())
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    trained = sentence_training.train_sentences(tmp_path, encoder).model.state_dict()
    alone, names, both = (load_file(tmp_path / f"{stage}.safetensors") for stage in ("second", "names", "both"))
    share = sentence_training.TEACHER_SHARE
    for name, tensor in trained.items():
        key = f"llama.{name}"
        torch.testing.assert_close(names[key], (1 - share) * alone[key] + share * before[name])  # a rate of 0
        torch.testing.assert_close(tensor, (names[key] + both[key]) / 2)
    assert any((names[f"llama.{name}"] != tensor).any() for name, tensor in trained.items())
    assert any((alone[f"llama.{name}"] != tensor).any() for name, tensor in before.items())

    again = sentence_training.train_sentences(tmp_path, TextEncoder(llama(tokenizer().get_piece_size()), tokenizer()))
    assert all(torch.equal(tensor, trained[name]) for name, tensor in again.model.state_dict().items())


def test_the_teacher_stays_as_it_is_and_is_not_saved(monkeypatch):
    torch.manual_seed(0)
    pupil, rng = Pupil(TextEncoder(llama(tokenizer().get_piece_size()), tokenizer())), np.random.default_rng(2)
    batch = Batches(tokenizer(), Round("", 1, 1.0, sentences=0.3, noise=0.2)).draw(pupil.ratios, rng)
    assert len(batch.bare) == len(batch.named) == THINGS + SHAPES and len(batch.said) == LANGUAGES * (THINGS + SHAPES)
    assert max(map(len, batch.said)) > SHORT and batch.spoken.shape == (LANGUAGES, THINGS)
    assert all(len(set(of_thing)) == LANGUAGES for of_thing in batch.spoken.T) and THINGS <= len(CHARACTERS)

    monkeypatch.setattr(sentence_training, "LONGEST", SHORT)
    cut = Batches(tokenizer(), Round("", 1, 1.0, sentences=0.3, noise=0.2)).draw(pupil.ratios, np.random.default_rng(2))
    assert max(map(len, cut.said)) <= SHORT  # no name is behind the end of a row

    before = {name: tensor.clone() for name, tensor in pupil.state_dict().items()}
    assert not any("teacher" in name for name in before)
    loss = pupil.loss(batch, rng)
    loss.backward()
    assert all(weight.grad is not None for weight in pupil.llama.parameters())
    assert (pupil.ratios != before["ratios"]).any()  # so that hard languages come more often


def test_the_empty_text_stays_as_it_is(monkeypatch):
    """Every image is guided by it: an encoder that moved it drew 0.67 of the English names instead of all."""
    torch.manual_seed(0)
    pupil = Pupil(TextEncoder(llama(tokenizer().get_piece_size()), tokenizer()))
    batch = Batches(tokenizer(), Round("", 1, 1.0, 0.3, 0.2)).draw(pupil.ratios, np.random.default_rng(2))
    (empty,) = token_rows(tokenizer(), [""])
    assert batch.negatives[0] == empty

    def loss(of):
        return pupil.loss(of, np.random.default_rng(2)).item()

    others = replace(batch, negatives=batch.negatives[1:])
    assert loss(batch) == pytest.approx(loss(others), abs=1e-6)  # nothing has moved
    with torch.no_grad():
        pupil.llama.get_input_embeddings().weight[empty[-1]] += 1.0  # of no other text alone
    assert loss(replace(batch, negatives=[empty])) > loss(others)


def test_names_that_lie_far_from_the_english_ones_come_more_often():
    torch.manual_seed(0)
    ratios = torch.full((len(trained_languages()), len(CHARACTERS)), 0.01)
    far = trained_languages().index("sw")
    ratios[far, ::2] = 2.0
    shares = sentence_training.shares_by_name(ratios)
    assert shares.shape == (len(trained_languages()) - 1, len(CHARACTERS))
    assert shares.sum(0) == pytest.approx(1.0) and (shares > 0).all()
    assert (shares[far - 1, ::2] > 0.4).all() and (shares[far - 1, 1::2] < 0.02).all()

    def often(by_name, things):
        batches, rng = Batches(tokenizer(), Round("", 1, 1.0, 0.0, 0.0, by_name)), np.random.default_rng(3)
        drawn = [batches.draw(ratios, rng) for _ in range(4)]
        spoken = [
            (languages == far).any()
            for batch in drawn
            for languages, (thing, *_) in zip(batch.spoken.T, batch.named, strict=False)
            if thing % 2 == things
        ]
        return np.mean(spoken)

    assert often(True, 0) > 0.6 > 0.1 > often(True, 1)
    assert abs(often(False, 0) - often(False, 1)) < 0.2  # a language whose names are far comes more often, each alike


def test_the_distance_of_each_name_is_known_before_the_names_are_trained():
    packed, _ = read_pack(pack_path("world"))
    model = llama(tokenizer().get_piece_size())
    model.load_state_dict({name: packed[f"model.{name}"].float() for name in model.state_dict()})
    ratios = name_ratios(model, tokenizer())
    assert ratios.shape == (len(trained_languages()), len(CHARACTERS))
    assert not ratios[0].any() and (ratios >= 0).all()  # English, and what has no name
    assert 0.001 < ratios[1:].median() < 0.02 and ratios[1:].mean() < 0.025


def test_samples_of_many_languages_together_ask_for_each_thing_equally_often():
    """Else a few easy things stand for all of them."""
    chosen = [evaluation.choose(8, 1, turn=turn) for turn in range(len(SEEN))]
    asked = [thing for of_turn in chosen for thing, _ in of_turn]
    assert sorted(asked) == sorted(8 * list(SEEN))
    assert len({noise for of_turn in chosen for _, noise in of_turn}) == len(asked)
    english = [case for case in evaluation.all_cases(2, 1, ["en", "de"]) if case.row == evaluation.MULAN]
    names = [
        case.expected.thing for case in english if case.language == "en" and case.expected.kind == evaluation.NAMED
    ]
    assert sorted(names) == sorted(SEEN)
