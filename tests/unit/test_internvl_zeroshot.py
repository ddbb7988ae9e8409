"""Labels, templates and the scores of zero-shot classification, with vectors that are known."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch.nn import functional as F

from mulan_nodes.mulan.internvl.zeroshot import (
    BUILT_IN,
    NO_TEMPLATES,
    classify,
    embed_labels,
    read_labels,
    read_templates,
)


class Texts:
    """Stands in for a model: each text has a direction of its own."""

    def __init__(self):
        self.calls: list[list[str]] = []
        self.label_cache = None

    def embed_texts(self, texts):
        self.calls.append(list(texts))
        return torch.stack([vector_of(text) for text in texts])


def vector_of(text: str) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    return F.normalize(torch.randn(16, generator=torch.Generator().manual_seed(seed)), dim=0)


# --- labels ---


def test_labels_stand_one_per_line_and_may_hold_commas():
    read = read_labels("  red, round \n\n猫\r\nقطة\n\t\nкошка, спящая")
    assert read.names == ("red, round", "猫", "قطة", "кошка, спящая") and read.repeated == ()


def test_repeated_labels_count_once_and_are_reported():
    assert read_labels("cat\ndog\n cat \ndog\ncat\nCat") == (("cat", "dog", "Cat"), ("cat", "dog"))


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_no_labels_say_what_to_write(text):
    with pytest.raises(ValueError, match="no label: write one per line"):
        read_labels(text)


def test_a_thousand_labels():
    names = tuple(f"thing {number}" for number in range(1000))
    assert read_labels("\n".join(names)).names == names
    assert embed_labels(Texts(), names).shape == (1000, 16)


def test_the_same_labels_again_are_not_encoded_again():
    model = Texts()
    first = embed_labels(model, ["cat", "dog"])
    assert embed_labels(model, ("cat", "dog")) is first and len(model.calls) == 1
    for labels, templates in ((["dog", "cat"], NO_TEMPLATES), (["dog", "cat"], ("a {c}",))):
        embed_labels(model, labels, templates)
    assert len(model.calls) == 3


# --- templates ---


def test_the_paper_s_templates_are_there_as_published():
    assert {code: len(BUILT_IN[code].sentences) for code in ("en", "zh", "ja", "ar", "it")} == {
        "en": 80,
        "zh": 80,
        "ja": 37,
        "ar": 55,
        "it": 49,
    }
    assert [code for code, templates in BUILT_IN.items() if "(paper)" in templates.name] == [
        "en",
        "zh",
        "ja",
        "ar",
        "it",
    ]
    assert BUILT_IN["en"].sentences[0] == "a bad photo of a {c}." and BUILT_IN["zh"].sentences[0] == "{c}的照片。"
    assert (
        BUILT_IN["it"].sentences[16] == "una foto di {c}\u00a0carino" and BUILT_IN["ar"].sentences[11] == "تطريز {c} "
    )


def test_every_built_in_template_has_a_place_and_every_set_its_own_name():
    assert all("{c}" in sentence for templates in BUILT_IN.values() for sentence in templates.sentences)
    assert len({templates.name for templates in BUILT_IN.values()}) == len(BUILT_IN)


def test_own_templates_take_either_mark():
    assert read_templates(" a drawing of {c} \n\n{}の絵\n{c} and {c}") == ("a drawing of {c}", "{c}の絵", "{c} and {c}")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "there is no template"),
        ("a photo of {c}\na photo of a cat", "'a photo of a cat' has no {c}"),
        ("{ c }", "has no {c}"),
    ],
)
def test_templates_that_cannot_serve(text, words):
    with pytest.raises(ValueError, match=words):
        read_templates(text)


# --- vectors ---


def test_a_label_s_vector_is_the_unit_mean_over_its_templates():
    model, templates = Texts(), ("a {c}", "the {c}", "the {c}", "{c} and {c}")
    found = embed_labels(model, ["cat", "{dog}"], templates)
    for label, vector in zip(("cat", "{dog}"), found, strict=True):
        sentences = [f"a {label}", f"the {label}", f"the {label}", f"{label} and {label}"]
        assert torch.allclose(vector, F.normalize(sum(map(vector_of, sentences)) / 4, dim=0), atol=1e-6)
    assert [len(call) for call in model.calls] == [6], "one call, each sentence once"


def test_a_sentence_that_two_labels_share_is_encoded_once():
    model = Texts()
    embed_labels(model, ["a cat", "cat"], ("{c}", "a {c}"))
    assert model.calls == [["a cat", "a a cat", "cat"]]


def test_without_templates_a_label_stands_for_itself():
    assert torch.allclose(embed_labels(Texts(), ["cat"], NO_TEMPLATES)[0], vector_of("cat"), atol=1e-6)


def test_softmax_scores_share_one_and_independent_ones_stand_alone():
    images = torch.stack([vector_of("p"), vector_of("q")])
    labels = torch.stack([vector_of(name) for name in ("cat", "dog", "bird")])
    found = classify(images, labels, 100.0)
    assert torch.allclose(found.softmax.sum(1), torch.ones(2))
    expected = torch.exp(100.0 * images.double() @ labels.double().T)
    assert torch.allclose(found.softmax.double(), expected / expected.sum(1, keepdim=True), atol=1e-4)
    fewer = classify(images, labels[:2], 100.0)
    assert torch.equal(fewer.cosine, found.cosine[:, :2]) and not torch.allclose(fewer.softmax, found.softmax[:, :2])
    assert torch.allclose(found.cosine[1, 2], images[1] @ labels[2])
