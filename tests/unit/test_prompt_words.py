"""Words of prompts in every kind of script, and prompts without one of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mulan_nodes.mulan.conditioning.prompt_words import MAX_WORDS, chosen_words, prompt_words
from mulan_nodes.tools.tinyworld import captions
from mulan_nodes.tools.tinyworld.world import THINGS


def texts(prompt: str, split: Callable[[str], list[str]] = list) -> list[str]:
    return [word.text for word in prompt_words(prompt, split)]


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("a big, RED circle. A star!", ["a", "big", "RED", "circle", "star"]),
        ("(red:1.2) ((circle)) [x:0.5] BREAK embedding:bad-hand.pt, t-shirt l'eau", None),
        ("एक बड़ा हरा वृत्त", ["एक", "बड़ा", "हरा", "वृत्त"]),
        ("دائرة حمراء، كبيرة", ["دائرة", "حمراء", "كبيرة"]),
        ("🦁 and 👩‍🚀", ["🦁", "and", "👩‍🚀"]),
        ("红圆 big", ["红", "圆", "big"]),
        ("((:1.2)) \\(red\\)", ["red"]),
    ],
)
def test_words_of_a_prompt(prompt, expected):
    assert texts(prompt) == (expected or ["red", "circle", "x", "0", "5", "t-shirt", "l'eau"])


def test_a_run_without_spaces_is_parted_by_the_tokenizer():
    assert texts("一个红色的圆, ok", lambda run: [run[:2], run[2:]]) == ["一个", "红色的圆", "ok"]


@pytest.mark.parametrize("language", captions.TRAINED)
def test_leaving_out_each_word_leaves_the_others(language):
    prompt = captions.full_caption(THINGS[5], language)
    words = prompt_words(prompt, list)
    for word in words:
        left = word.left_out(prompt)
        assert len(left) == len(prompt) - sum(end - first for first, end in word.spans)
        assert word.text.casefold() not in [other.text.casefold() for other in prompt_words(left + " x", list)]


def test_chosen_words_are_whole_words_where_a_script_writes_spaces():
    (word,) = chosen_words("a cat and a Star, a star", "star")
    assert word.left_out("a cat and a Star, a star") == "a cat and a , a "
    assert [word.spans for word in chosen_words("a cat and a star", "a\n a star,")] == [((0, 1), (10, 11)), ((10, 16),)]
    assert chosen_words("一个红色的圆形", "红色的，圆形")[0].left_out("一个红色的圆形") == "一个圆形"
    thai = "มีวงกลมสีดำขนาดใหญ่อยู่ในภาพ"  # the word ends in a mark of tone
    assert chosen_words(thai, "ขนาดใหญ่")[0].left_out(thai) == "มีวงกลมสีดำอยู่ในภาพ"
    with pytest.raises(ValueError, match="'ar' is not in the prompt"):
        chosen_words("a star", "ar")
    with pytest.raises(ValueError, match="is not in the prompt"):
        chosen_words("काली बिल्ली", "काल")  # behind it stands a mark of the same word


def test_bad_prompts_say_what_is_wrong():
    for prompt in ("", " ,.; ", "BREAK"):
        with pytest.raises(ValueError, match="no words"):
            prompt_words(prompt, list)
    with pytest.raises(ValueError, match=f"at most {MAX_WORDS}"):
        prompt_words(" ".join(map(str, range(MAX_WORDS + 1))), list)
