"""Which part of a line is its label, and which texts are prompts."""

from __future__ import annotations

import pytest

from mulan_nodes.mulan.conditioning.languages import parse_labeled_prompts


@pytest.mark.parametrize(
    "line, label, prompt",
    [
        ("zh: 一只猫", "zh", "一只猫"),
        ("zh：一只猫", "zh", "一只猫"),
        ("zh:一只猫", "zh", "一只猫"),
        ("pt-BR: um gato", "pt-BR", "um gato"),
        ("zh-Hant-TW: 貓", "zh-Hant-TW", "貓"),
        ("es-419: un gato", "es-419", "un gato"),
        ("zh_CN: 猫", "zh_CN", "猫"),
        ("fil: pusa", "fil", "pusa"),
        ("en: it: the clown", "en", "it: the clown"),
        ("de:", "de", ""),
        ("cat: sleeping", "1", "cat: sleeping"),
        ("logo: red on white", "1", "logo: red on white"),
        ("16:9 photo of a cat", "1", "16:9 photo of a cat"),
        ("(en:1.2) a cat", "1", "(en:1.2) a cat"),
        ("embedding:x, a cat", "1", "embedding:x, a cat"),
        ("zh : a cat", "1", "zh : a cat"),
        ("EN: a cat", "1", "EN: a cat"),
        ("a cat", "1", "a cat"),
        ("猫：a cat", "1", "猫：a cat"),
        ("# a cat", "1", "# a cat"),
    ],
)
def test_a_label_is_a_language_code_and_a_colon(line, label, prompt):
    assert parse_labeled_prompts([line]) == [(label, prompt)]


def test_a_text_has_a_prompt_per_line():
    assert parse_labeled_prompts(["en: a cat\n\n  ein Hund \r\n \nzh: 猫\n"]) == [
        ("en", "a cat"),
        ("2", "ein Hund"),
        ("zh", "猫"),
    ]


def test_each_of_several_texts_is_a_prompt():
    assert parse_labeled_prompts(["a cat,\nsleeping", "", "zh: 猫\n坐着"]) == [
        ("1", "a cat,\nsleeping"),
        ("2", ""),
        ("zh", "猫\n坐着"),
    ]


@pytest.mark.parametrize("texts", [["\n".join(map(str, range(10001)))], list(map(str, range(10001)))])
def test_too_many_prompts_are_an_error(texts):
    with pytest.raises(ValueError, match="there are 10001 prompts, and at most 10000 are encoded at once"):
        parse_labeled_prompts(texts)


@pytest.mark.parametrize("texts", [[""], [" \n\t\n"], []])
def test_no_prompt_is_an_error(texts):
    with pytest.raises(ValueError, match="there is no prompt: write one per line"):
        parse_labeled_prompts(texts)
