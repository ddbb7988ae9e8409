"""The tiny InternVL: what it is trained on, how it is written, and that its pair of encoders classifies pictures in
every trained language.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mulan_nodes.mulan.internvl.contrastive import normalize
from mulan_nodes.mulan.internvl.internvl_files import open_internvl, unexpected
from mulan_nodes.mulan.internvl.internvl_loader import load_internvl
from mulan_nodes.tools.tinyworld import captions, contrastive_training, world
from mulan_nodes.tools.tinyworld.contrastive_examination import GOAL, QUESTIONS, examine, look
from mulan_nodes.tools.tinyworld.contrastive_training import Pair, draw_anywhere, wordings


@pytest.fixture(scope="module", params=["C", "G"])
def loaded(request, tiny_models):
    return load_internvl(
        tiny_models["tiny_internvl_vision.safetensors"], request.param, tiny_models["tiny_internvl.safetensors"]
    )


def test_the_pair_labels_new_pictures_in_every_trained_language(loaded):
    questions = {
        name: question
        for name, question in QUESTIONS.items()
        if not question.templates and not question.bare and not question.held_out
    }
    found = examine(loaded, look(loaded, drawings=2), list(captions.TRAINED), questions)
    missed = {
        (language, name): share for language, shares in found.items() for name, share in shares.items() if share < GOAL
    }
    assert len(found) == 12 and len(questions) == 4 and not missed


def test_the_pair_labels_in_templates_and_without_articles(loaded):
    pictures = look(loaded, drawings=1)
    templates = {name: question for name, question in QUESTIONS.items() if question.templates}
    found = examine(loaded, pictures, ["en", "zh", "fr"], templates)
    assert min(share for shares in found.values() for share in shares.values()) >= GOAL
    bare = {name: question for name, question in QUESTIONS.items() if question.bare}
    found = examine(loaded, pictures, list(captions.TRAINED), bare)
    assert min(share for shares in found.values() for share in shares.values()) >= GOAL


def test_chance_is_what_a_model_without_training_scores(tiny_models):
    """The examination can fail."""
    loaded = load_internvl(
        tiny_models["tiny_internvl_vision.safetensors"], "C", tiny_models["tiny_internvl.safetensors"]
    )
    torch.manual_seed(0)
    with torch.no_grad():
        loaded.model.text_projection = nn.Parameter(torch.randn_like(loaded.model.text_projection.float()))
    shares = examine(loaded, look(loaded, drawings=1), ["en"], {"pair": QUESTIONS["colour and shape"]})["en"]
    assert shares["pair"] < 0.3


def test_the_file_is_a_converted_vision_side(tiny_models):
    opened = open_internvl(tiny_models["tiny_internvl_vision.safetensors"])
    assert (
        opened.modes == ("C", "G")
        and not unexpected(opened)
        and opened.file.metadata["title"] == "MuLan Nodes: the tiny InternVL"
    )


def test_no_text_of_training_names_a_pair_that_is_held_out():
    texts = {text for of_choice, _ in wordings(world.SEEN_THINGS) for of_wording in of_choice for text in of_wording}
    assert {"red circle", "a picture of a star", "一个红色的图形", "большая красная фигура на светлом фоне"} <= texts
    for thing in (thing for thing in world.THINGS if thing.held_out):
        for language in captions.TRAINED.values():
            for named in (frozenset({"colour", "shape"}), frozenset(captions.ATTRIBUTES)):
                assert not texts & {language.noun_phrase(thing, named), language.bare_phrase(thing, named)}


def test_phrases_without_article():
    thing, pair = world.Thing("red", "star", "big"), frozenset({"colour", "shape"})
    bare = {
        language: captions.LANGUAGES[language].bare_phrase(thing, pair)
        for language in ("en", "zh", "tr", "de", "fr", "ar")
    }
    assert bare == {
        "en": "red star",
        "zh": "红色的五角星",
        "tr": "kırmızı yıldız",
        "de": "roter Stern",
        "fr": "étoile rouge",
        "ar": "نجمة حمراء",
    }


def test_things_anywhere_are_whole():
    rng = np.random.default_rng(0)
    for thing in world.THINGS:
        reading = world.read(draw_anywhere(thing, rng))
        assert reading.agrees(thing) and reading.size == thing.size


def test_texts_that_several_things_share_are_right_for_all_of_them():
    """A circle may be called "circle" whatever its colour: only what no picture shows costs anything."""
    alike = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    pictures = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    right, wrong = 50 * pictures @ pictures.T, 50 * pictures @ pictures.flip(0).T
    at_best = contrastive_training._contrast(right[None], alike[None])
    assert (
        at_best == pytest.approx(2 / 3 * np.log(2), abs=1e-4)
        and contrastive_training._contrast(wrong[None], alike[None]) > 10
    )


def test_both_modes_learn_from_every_loss():
    torch.manual_seed(0)
    pair = Pair(text_width=16, text_heads=4, norm_eps=1e-6)
    llama = _Llama()
    loss = pair.loss(torch.randn(3, 3, 64, 64), torch.randn(2, 3, 16), torch.eye(3).expand(2, -1, -1), llama)
    loss.backward()
    assert all(
        parameter.grad is not None and parameter.grad.any()
        for name, parameter in pair.named_parameters()
        if not name.endswith("k.bias")
    )


class _Llama(nn.Module):
    """A stand-in for ComfyUI's without blocks, so that the reader's own parts are alone."""

    def __init__(self):
        super().__init__()
        self.layers, self.norm = [_Block() for _ in range(3)], nn.Identity()

    def compute_freqs_cis(self, positions, device):
        return None


class _Block:
    input_layernorm = post_attention_layernorm = mlp = staticmethod(lambda x: x)

    @staticmethod
    def self_attn(x, **_):
        return (x,)


def test_a_pair_is_written_as_it_is_read(tmp_path, tiny_models):
    text = contrastive_training.FrozenText(contrastive_training.write_text_encoder(tmp_path))
    torch.manual_seed(0)
    pair = Pair(text.file.config.hidden_size, text.file.config.num_attention_heads, text.file.config.rms_norm_eps)
    path = contrastive_training.write(pair, text, tmp_path / "pair.safetensors")
    loaded = load_internvl(path, "G", tiny_models["tiny_internvl.safetensors"])
    picture = torch.rand(64, 64, 3)
    seen = loaded.embed_images([picture])
    images = contrastive_training.as_seen((picture * 255).round().permute(2, 0, 1)[None])
    with torch.no_grad():
        states = pair.model.encode_images(images)
        expected = normalize(pair.model.pool_images(states) + pair.reader(states, text.llama))
        words = pair.model.project_texts(text.rows(["一个红色的五角星", "a star"]))
    assert torch.allclose(seen, expected, atol=3e-3) and torch.allclose(
        loaded.embed_texts(["一个红色的五角星", "a star"]), words, atol=3e-3
    )
