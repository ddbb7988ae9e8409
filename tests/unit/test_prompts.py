"""Windows, weights and styles, on the golden tokenizer."""
from __future__ import annotations

from pathlib import Path

import pytest

from mulan.families import SD15
from mulan.prompts import PromptTokenizer
from mulan.tokenizer import BOS, EOS, PAD, InternVLTokenizer

MODEL = Path(__file__).resolve().parents[1] / "parity" / "goldens" / "mulan" / "tokenizer" / "tokenizer.model"


@pytest.fixture(scope="module")
def tokenizer() -> InternVLTokenizer:
    return InternVLTokenizer(MODEL.read_bytes())


@pytest.fixture(scope="module")
def prompts(tokenizer) -> PromptTokenizer:
    return PromptTokenizer(tokenizer, SD15, "default")


def windows(prompts, text, **options):
    (rows,) = prompts.tokenize_with_weights(text, **options).values()
    return rows


def content(window, prefix=3):
    """The (id, weight) rows between prefix and eos."""
    end = next(i for i in range(1 + prefix, len(window)) if window[i][0] == EOS)
    return window[1 + prefix:end]


def test_a_window_is_bos_prefix_text_eos_padding(prompts, tokenizer):
    (window,) = windows(prompts, "a cat")
    assert len(window) == 80 and window[0] == (BOS, 1.0) and window[-1] == (PAD, 1.0)
    assert [id for id, _ in window[1:4]] == [p.id for p in tokenizer.prefix]


def test_an_empty_prompt_has_no_prefix(prompts):
    assert windows(prompts, "") == [[(BOS, 1.0), (EOS, 1.0)] + [(PAD, 1.0)] * 75]


def test_never_a_prefix_where_the_option_says_so(prompts, tokenizer):
    (window,) = windows(prompts, "a cat", tokenizer_options={"prefix": "never"})
    assert len(window) == 77 and [id for id, _ in content(window, prefix=0)] == [p.id for p in tokenizer.encode("a cat")]


def test_weights_do_not_change_the_tokens(prompts):
    texts = "a (red:1.3) car", "a ((red)) car", "(a red car:0.5)", "a red car"
    ids = [[id for id, _ in windows(prompts, text)[0]] for text in texts]
    assert ids[0] == ids[1] == ids[2] == ids[3]


@pytest.mark.parametrize("text, weighted, weight", [
    ("a (red:1.3) car", "red", 1.3),
    ("a ((red)) car", "red", 1.1 * 1.1),
    ("(红色:0.5) 的汽车", "红色", 0.5),
    ("1girl, (𓀀:2) at noon", "𓀀", 2.0),
])
def test_a_weight_lands_on_its_word_alone(prompts, tokenizer, text, weighted, weight):
    rows = content(windows(prompts, text)[0])
    weighty = [(id, w) for id, w in rows if w != 1.0]
    assert [w for _, w in weighty] == pytest.approx([weight] * len(weighty))
    assert tokenizer.decode([id for id, _ in weighty]).strip() == weighted


def test_escaped_brackets_are_text(prompts, tokenizer):
    rows = content(windows(prompts, r"a \(red\) car")[0])
    assert {w for _, w in rows} == {1.0} and "(red)" in tokenizer.decode([id for id, _ in rows])


def test_upstream_reads_brackets_as_text_and_drops_what_does_not_fit(tokenizer):
    upstream = PromptTokenizer(tokenizer, SD15, "upstream")
    (window,) = windows(upstream, "a (red:1.3) car")
    assert "(red:1.3)" in tokenizer.decode([id for id, _ in content(window)])
    assert len(windows(upstream, "a red car, " * 100)) == 1


def test_characters_that_merge_with_the_colon_are_kept(prompts, tokenizer):
    assert tokenizer.decode([id for id, _ in content(windows(prompts, "//example.org")[0])]) == "//example.org"
    assert [p.id for p in tokenizer.encode_prefixed("//example.org", keep_first=False)[:3]] != [p.id for p in tokenizer.prefix]


@pytest.mark.parametrize("text", ["a small red house by the river, " * 20, "雨の夜のネオンの街と白い馬。" * 20, "𓀀𓀁𓀂𓀃" * 30, "word " * 400])
def test_long_text_goes_on_in_windows_that_lose_nothing_and_cut_no_character(prompts, tokenizer, text):
    chunks = [[id for id, _ in content(window)] for window in windows(prompts, text)]
    assert len(chunks) > 1 and all(0 < len(chunk) <= 75 for chunk in chunks)
    assert [id for chunk in chunks for id in chunk] == [p.id for p in tokenizer.encode_prefixed(text, keep_first=True)[3:]]
    assert not any("\ufffd" in tokenizer.decode(chunk) for chunk in chunks)


def test_windows_end_behind_a_phrase(prompts, tokenizer):
    first = content(windows(prompts, "a small red house by the river, " * 20)[0])
    assert tokenizer.piece(first[-1][0]).endswith(",")


def test_textual_inversions_are_taken_out_with_a_warning(prompts, caplog):
    with caplog.at_level("WARNING"):
        assert windows(prompts, "a cat embedding:EasyNegative") == windows(prompts, "a cat ")
    assert "embedding:EasyNegative" in caplog.text


def test_word_ids_count_words(prompts):
    rows = windows(prompts, "a red car", return_word_ids=True)[0]
    words = [word for _, _, word in content(rows)]
    assert words[0] == 1 and words == sorted(words) and words[-1] == 3 and rows[0][2] == 0 and rows[-1][2] == 0


def test_an_unknown_style_is_refused(tokenizer):
    with pytest.raises(ValueError, match="'fancy'.*default, upstream"):
        PromptTokenizer(tokenizer, SD15, "fancy")


def test_a_broken_sentencepiece_model_is_refused():
    with pytest.raises(ValueError, match="9 bytes"):
        InternVLTokenizer(b"not a one")
