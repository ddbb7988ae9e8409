"""Windows, weights and styles, on the golden tokenizer."""

from __future__ import annotations

import random
import time
import unicodedata
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from comfy import model_management, sd1_clip

from mulan_nodes.mulan.boundary import interrupts
from mulan_nodes.mulan.conditioning import prompt_syntax
from mulan_nodes.mulan.conditioning.families import FAMILIES, SD15
from mulan_nodes.mulan.conditioning.prompt_tokenizer import PromptTokenizer
from mulan_nodes.mulan.conditioning.tokenizer import BOS, EOS, PAD, SPACE, InternVLTokenizer, units

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
    return window[1 + prefix : end]


def test_a_window_is_bos_prefix_text_eos_padding(prompts, tokenizer):
    (window,) = windows(prompts, "a cat")
    assert len(window) == 80 and window[0] == (BOS, 1.0) and window[-1] == (PAD, 1.0)
    assert [id for id, _ in window[1:4]] == [p.id for p in tokenizer.prefix]


def test_an_empty_prompt_has_no_prefix(prompts):
    assert windows(prompts, "") == [[(BOS, 1.0), (EOS, 1.0)] + [(PAD, 1.0)] * 75]


def test_never_a_prefix_where_the_option_says_so(prompts, tokenizer):
    (window,) = windows(prompts, "a cat", tokenizer_options={"negative": True})
    assert len(window) == 77 and [id for id, _ in content(window, prefix=0)] == [
        p.id for p in tokenizer.encode("a cat")
    ]


def test_weights_do_not_change_the_tokens(prompts):
    texts = "a (red:1.3) car", "a ((red)) car", "(a red car:0.5)", "a red car"
    ids = [[id for id, _ in windows(prompts, text)[0]] for text in texts]
    assert ids[0] == ids[1] == ids[2] == ids[3]


@pytest.mark.parametrize(
    "text, weighted, weight",
    [
        ("a (red:1.3) car", "red", 1.3),
        ("a ((red)) car", "red", 1.1 * 1.1),
        ("(红色:0.5) 的汽车", "红色", 0.5),
        ("1girl, (𓀀:2) at noon", "𓀀", 2.0),
    ],
)
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
    assert [p.id for p in tokenizer.encode_prefixed("//example.org", keep_merged=False)[:3]] != [
        p.id for p in tokenizer.prefix
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a small red house by the river, " * 20,
        "雨の夜のネオンの街と白い馬。" * 20,
        "𓀀𓀁𓀂𓀃" * 30,
        "word " * 400,
        "ሰማያዊ ቤት፣ " * 30,
    ],
)
def test_long_text_goes_on_in_windows_that_lose_nothing_and_cut_no_character(prompts, tokenizer, text):
    chunks = [[id for id, _ in content(window)] for window in windows(prompts, text)]
    assert len(chunks) > 1 and all(0 < len(chunk) <= 75 for chunk in chunks)
    assert [id for chunk in chunks for id in chunk] == [
        p.id for p in tokenizer.encode_prefixed(text.strip(), keep_merged=True)[3:]
    ]
    assert not any("\ufffd" in tokenizer.decode(chunk) for chunk in chunks)


def chunks(prompts, text) -> list[str]:
    """What each window holds, as text."""
    return [
        "".join(unit.text for unit in units([token.piece for token in window]))
        for window in prompts.tokenize(text).windows
    ]


@pytest.mark.parametrize(
    "phrase",
    [
        "a small red house by the river, ",
        "雨の夜のネオンの街と白い馬。",
        "红色的城堡，",
        "بيت أحمر صغير، ",
        "ሰማያዊ ቤት። ",
    ],
)
def test_windows_end_behind_a_phrase(prompts, phrase):
    found = chunks(prompts, phrase * 30)
    assert len(found) > 1 and all(chunk.rstrip().endswith(phrase.rstrip()[-1]) for chunk in found[:-1])


def test_a_full_stop_inside_a_number_or_a_name_ends_no_phrase(prompts):
    assert {chunk[0] for chunk in chunks(prompts, "f/2.8 3.5mm a.b.c " * 30)[1:]} == {" "}


@pytest.mark.parametrize("text", ["ሰማያዊ " * 40, "cat 𓀀𓀁𓀂𓀃 " * 30, "extraordinarily yellowish " * 40])
def test_windows_end_between_words(prompts, text):
    """Also where words are runs of bytes, which would fit the window in part."""
    assert all(chunk.startswith(" ") for chunk in chunks(prompts, text)[1:])
    assert max(len(window) for window in prompts.tokenize(text).windows) > 60


def test_a_run_of_bytes_is_cut_only_where_it_is_longer_than_a_window(prompts):
    fits, exceeds = "𓀀" * 18, "𓀀" * 30  # 4 pieces each, and one before them
    assert chunks(prompts, f"one two three {fits}")[1].strip() == fits
    assert [len(chunk.strip()) for chunk in chunks(prompts, exceeds)] == [18, 12]


@pytest.mark.parametrize(
    "text",
    [
        "เด็กผู้หญิงกำลังขี่ม้าสีขาวริมแม่น้ำ" * 8,
        "नीलेआकाशकेनीचेछोटाघर" * 10,
        "👨‍👩‍👧👍🏽🇩🇪❤️" * 12,
        "e\u0301" * 200,
        "\u1112\u1161\u11ab" * 60,
    ],
    ids=["Thai", "Devanagari", "emoji", "accents", "Hangul letters"],
)
def test_what_is_drawn_as_one_stays_in_one_window(prompts, text):
    found = chunks(prompts, text)
    assert "".join(found).strip() == text and len(found) > 1
    for before, after in zip(found, found[1:], strict=False):
        first, last = after[0], before[-1]
        assert (
            not unicodedata.category(first).startswith("M")
            and "\u200d" not in (first, last)
            and unicodedata.combining(last) != 9
        )
        assert (
            not "\u1160" <= first <= "\u11ff"
            and first != "🏽"
            and last not in "เแโใไ"
            and not (last == "🇩" and first == "🇪")
        )


@pytest.mark.parametrize(
    "text, parts",
    [
        ("a red car BREAK a blue house", ["a red car", "a blue house"]),
        ("红色的车\nBREAK\n蓝色的房子", ["红色的车", "蓝色的房子"]),
        ("BREAK a BREAK BREAK b BREAK", ["a", "b"]),
        ("a breakfast, break, BREAKING, XBREAK", ["a breakfast, break, BREAKING, XBREAK"]),
        (r"a \BREAK b", ["a BREAK b"]),
        ("BREAK", [""]),
        (" a ", ["a"]),
    ],
)
def test_break_begins_a_window(prompts, text, parts):
    reading = prompts.tokenize(text)
    assert reading.text == parts and reading.part_of_window == list(range(len(parts)))
    single = [prompts.tokenize(part, disable_weights=True).windows[0] for part in parts]
    assert [[token.piece.id for token in window] for window in reading.windows] == [
        [token.piece.id for token in window] for window in single
    ]


def test_a_break_inside_brackets_keeps_the_weight(prompts, tokenizer):
    reading = prompts.tokenize("a (red car BREAK a blue:1.3) house")
    assert reading.text == ["a red car", "a blue house"]
    weighty = [
        [tokenizer.decode([t.piece.id for t in window if t.weight == weight]).strip() for weight in (1.0, 1.3)]
        for window in reading.windows
    ]
    assert weighty == [["a", "red car"], ["house", "a blue"]]


@pytest.mark.parametrize("style, options", [("upstream", {}), ("default", {"disable_weights": True})])
def test_break_and_brackets_are_text_where_nothing_is_parsed(tokenizer, style, options):
    (window,) = windows(PromptTokenizer(tokenizer, SD15, style), "a (red:1.3) BREAK b", **options)
    assert "(red:1.3) BREAK b" in tokenizer.decode([id for id, _ in content(window)])


def balanced(random, depth: int) -> str:
    """A prompt whose brackets all have a partner."""
    text = ""
    for _ in range(random.randint(0, 4)):
        if depth and random.random() < 0.4:
            text += (
                "("
                + balanced(random, depth - 1)
                + random.choice(["", ":1.2", ":0.5 ", ": -2", ":x", "::1", ":1_0", ":", ":１.５", ": 1e1"])
                + ")"
            )
        else:
            text += random.choice(["a", "b ", ":", r"\(", r"\)", " ", "1", "红", ":1.5", "\\"])
    return text


def test_brackets_weigh_as_in_comfyui():
    """Against ComfyUI's own parser."""

    def joined(segments):
        characters = [(character, weight) for text, weight in segments for character in text]
        return "".join(character for character, _ in characters), [weight for _, weight in characters]

    source = random.Random(0)
    compared = 0
    for _ in range(5000):
        text = balanced(source, 4)
        ours = prompt_syntax.parse_prompt(text)
        if ours.notes.lone_brackets or ours.notes.limited_weights:  # a backslash took a bracket its partner
            continue
        stock = [
            (sd1_clip.unescape_important(part), weight)
            for part, weight in sd1_clip.token_weights(sd1_clip.escape_important(text), 1.0)
        ]
        ours, stock = joined(ours.parts[0]), joined(stock)
        assert ours[0] == stock[0] and ours[1] == pytest.approx(stock[1]), text
        compared += 1
    assert compared > 3000


@pytest.mark.parametrize(
    "text, read, lone",
    [
        (":) a (red:1.3) car", [(":) a ", 1.0), ("red", 1.3), (" car", 1.0)], 1),
        ("a (red:1.3) car ((", [("a ", 1.0), ("red", 1.3), (" car ((", 1.0)], 2),
        ("(a (red:1.3) car", [("(a ", 1.0), ("red", 1.3), (" car", 1.0)], 1),
    ],
)
def test_a_bracket_without_a_partner_is_text(text, read, lone):
    prompt = prompt_syntax.parse_prompt(text)
    assert prompt.parts == [read] and prompt.notes.lone_brackets == lone


@pytest.mark.parametrize("given", ["nan", "inf", "-inf", "1e999"])
def test_a_weight_that_is_no_number_is_text(given):
    assert prompt_syntax.parse_prompt(f"(red:{given})").parts == [[(f"red:{given}", 1.1)]]


def test_weights_have_a_limit(caplog):
    prompt = prompt_syntax.parse_prompt("(red:1e9) " + "(" * 1000 + "blue" + ")" * 1000 + "(green:-1e9)")
    assert [weight for _, weight in prompt.parts[0]] == [100, 1, 100, -100]
    assert prompt.notes.limited_weights == 3 and "limited" in caplog.text


KILOBYTES = 100
ABSURD = {
    "words": "a small red house, ",
    "one word": "x",
    "Chinese": "红色的城堡",
    "bytes": "ሰማያዊ ",
    "control characters": "".join(map(chr, range(32))),
    "NUL": "a\0b",
    "lone surrogates": "\ud800a\udfff",
    "emoji": "😀👨‍👩‍👧🇩🇪",
    "right to left": "قطة red קטן (سيارة:1.3) ",
    "opening brackets": "(",
    "closing brackets": ")",
    "brackets": "()",
    "colons in brackets": "(1:",
    "breaks": "BREAK ",
    "inversions": "embedding:a ",
    "spaces": " ",
    "new lines": "\n",
    "literals": "<s></s><unk>[PAD]",
    "the mark of a space": SPACE,
    "accents": "\u0301",
}


@pytest.mark.parametrize(
    "name, style",
    [(name, "default") for name in [*ABSURD, "nested brackets", "nested weights"]]
    + [(name, "upstream") for name in ("bytes", "NUL", "lone surrogates", "nested brackets")],
)
def test_absurd_prompts_are_read_in_no_time(tokenizer, name, style):
    if name in ABSURD:
        size = len(ABSURD[name].encode(errors="surrogatepass"))
        text = ABSURD[name] * (KILOBYTES * 1000 // size)
    else:
        text = "(" * 20_000 + "deep" + (":1.2)" if name == "nested weights" else ")") * 20_000
    prompts = PromptTokenizer(tokenizer, SD15, style)
    before = time.process_time()
    tokens = prompts.tokenize_with_weights(text)["l"]
    assert time.process_time() - before < 3
    assert {len(window) for window in tokens} == {80 if any(prompts.tokenize(text).text) else 77}
    assert all(abs(weight) <= prompt_syntax.MAX_WEIGHT for window in tokens for _, weight in window)


def test_halves_of_characters_are_replaced(prompts, caplog):
    assert windows(prompts, "a \ud800 cat") == windows(prompts, "a \ufffd cat") and "1 halves" in caplog.text
    assert windows(prompts, "a \ud83d\ude00 cat") == windows(prompts, "a 😀 cat")


def test_a_mark_of_a_space_in_the_text_costs_no_weight_behind_it(prompts, tokenizer):
    rows = content(windows(prompts, f"a{SPACE}{SPACE}small (red:1.3) car")[0])
    assert tokenizer.decode([id for id, weight in rows if weight == 1.3]).strip() == "red"


XL = replace(SD15, name="xl", token_keys=("g", "l"), prefixed_window=83, bare_window=80, bare_negative=False)
PIXART = replace(SD15, name="art", token_keys=("t5xxl",), prefixed_window=83, bare_window=80)


def test_a_family_without_bare_negatives(tokenizer):
    """SDXL: always the prefix; two keys with windows of their own; a negative says so to the encoder."""
    prompts = PromptTokenizer(tokenizer, XL, "default")
    for text in ("", "a cat"):
        tokens = prompts.tokenize_with_weights(text)
        assert tokens.keys() == {"g", "l"} and tokens["g"] == tokens["l"] and tokens["g"] is not tokens["l"]
        (window,) = tokens["g"]
        assert len(window) == 83 and [id for id, _ in window[1:4]] == [p.id for p in tokenizer.prefix]
        assert prompts.tokenize_with_weights(text, tokenizer_options={"negative": True}) == {**tokens, "negative": []}


@pytest.mark.parametrize("family, room", [(SD15, 75), (XL, 78), (PIXART, 78)])
@pytest.mark.parametrize("negative", [False, True])
def test_a_window_has_room_for_what_upstream_keeps(tokenizer, family, room, negative):
    for style in ("default", "upstream"):
        reading = PromptTokenizer(tokenizer, family, style).tokenize("," * room * 3, negative)
        assert reading.capacity == room and len(reading.windows[0]) == room, style
        assert style == "default" or len(reading.windows) == 1


def test_upstream_tells_what_it_loses(tokenizer):
    reading = PromptTokenizer(tokenizer, SD15, "upstream").tokenize("//example.org " + "a cat, " * 60)
    assert reading.merged == "//"
    kept = "".join(unit.text for unit in units([token.piece for token in reading.windows[0]]))
    dropped = "".join(unit.text for unit in units([token.piece for token in reading.dropped]))
    assert len(reading.windows[0]) == 75 and reading.merged + kept + dropped == reading.text[0]


@pytest.mark.parametrize("text", ["()", "embedding:EasyNegative", "(embedding:EasyNegative:1.2)"])
def test_a_prompt_of_which_nothing_is_left_is_empty(prompts, text):
    assert windows(prompts, text) == windows(prompts, "")


def test_textual_inversions_are_taken_out_with_a_warning(prompts, caplog):
    with caplog.at_level("WARNING"):
        assert windows(prompts, "a cat embedding:EasyNegative") == windows(prompts, "a cat ")
    assert "embedding:EasyNegative" in caplog.text


@pytest.mark.parametrize(
    "text, left, names",
    [
        ("embedding:名，一个红色的圆形", "，一个红色的圆形", ["embedding:名"]),
        ("红色，embedding:x，圆形", "红色，，圆形", ["embedding:x"]),
        ("（embedding:x）圆形", "（）圆形", ["embedding:x"]),
        ("「embedding:x」圆形。embedding:y。", "「」圆形。。", ["embedding:x", "embedding:y"]),
        ("قطة، embedding:x؛ كبيرة", "قطة، ؛ كبيرة", ["embedding:x"]),
        ("नीला embedding:x। बड़ा", "नीला । बड़ा", ["embedding:x"]),
        ("ሰማያዊ embedding:x፣ ቤት", "ሰማያዊ ፣ ቤት", ["embedding:x"]),
        ("red; embedding:x;blue", "red; ;blue", ["embedding:x"]),
        ("embedding:a.b_c-d.pt, cat", ", cat", ["embedding:a.b_c-d.pt"]),
        ("embedding:x\u3000圆形 embedding:y\u200b形", "\u3000圆形 \u200b形", ["embedding:x", "embedding:y"]),
        ("myembedding:x embedding: y embedding：z", "myembedding:x embedding: y embedding：z", []),
        ("embedding:", "embedding:", []),
    ],
)
def test_a_textual_inversion_ends_at_punctuation_of_any_script(text, left, names):
    prompt = prompt_syntax.parse_prompt(text)
    assert ["".join(segment.text for segment in part) for part in prompt.parts] == [left]
    assert prompt.notes.inversions == names


@pytest.mark.parametrize("text", ["（红色：1.3）的车", "（red:1.3）", "(red：1.3)"])
def test_full_width_brackets_and_colons_weigh_nothing(text):
    """As in ComfyUI: they are part of many sentences."""
    assert {weight for _, weight in prompt_syntax.parse_prompt(text).parts[0]} <= {1.0, 1.1}


def test_punctuation_of_any_script_stands_beside_break(prompts):
    assert prompts.tokenize("红色的车，BREAK。蓝色的房子").text == ["红色的车，", "。蓝色的房子"]


WHITE = [
    "",
    " ",
    "\n",
    "\r\n",
    "\t",
    "\u3000",
    "\u00a0",
    "\u200b",
    "\ufeff",
    "\u2028",
    "\x85",
    "\x1c",
    "\u2060 \n",
    "\0",
]


@pytest.mark.parametrize("white", WHITE)
@pytest.mark.parametrize("negative", [False, True])
def test_a_prompt_in_which_nothing_can_be_seen_is_empty(prompts, white, negative):
    option = {"tokenizer_options": {"negative": negative}}
    empty = windows(prompts, "", **option)
    assert windows(prompts, white, **option) == empty
    assert windows(prompts, white, **option, disable_weights=True) == empty
    assert windows(prompts, f"( {white}:1.2) BREAK{white}", **option) == empty


@pytest.mark.parametrize(
    "text, plain",
    [
        ("a big blue star\n\n", "a big blue star"),
        ("\ufeffa  big\nblue\t\u00a0star\u3000", "a big blue star"),
        ("a ( big:1.2) star", "a (big:1.2) star"),
        ("a (big :1.2) star", "a (big :1.2)star"),
        ("a embedding:x cat", "a cat"),
        ("a\r\n\r\nBREAK\n b ", "aBREAKb".replace("BREAK", " BREAK ")),
        ("большая\nсиняя  звезда", "большая синяя звезда"),
        ("큰\n파란색 별", "큰 파란색 별"),
        ("一个大的\n蓝色五角星", "一个大的蓝色五角星"),
        ("红色，\r\n蓝色\u3000星。\t", "红色，蓝色星。"),
        ("红色  蓝色", "红色 蓝色"),
        ("スター\n円", "スター円"),
        ("ดาว\nที่\nสี", "ดาวที่สี"),
        ("star\n圆形\n👍\n圆", "star 圆形 👍 圆"),
        ("(红色:1.2)\n(蓝色:0.8)", "(红色:1.2)(蓝色:0.8)"),
    ],
)
def test_white_space_is_one_space_and_none_at_the_ends(prompts, text, plain):
    assert windows(prompts, text) == windows(prompts, plain)


@pytest.mark.parametrize("text", ["a big blue star", "a , b", "红 色", "e\u200ce", "ភាសា\u200bខ្មែរ", "a\u200b b"])
def test_a_prompt_of_single_spaces_stays_as_it_is(prompts, tokenizer, text):
    (window,) = windows(prompts, text)
    assert [id for id, _ in content(window)] == [p.id for p in tokenizer.encode_prefixed(text, keep_merged=True)[3:]]


@pytest.mark.parametrize("text", ["a  cat\n", " ", "\ufeffa"])
def test_upstream_keeps_white_space(tokenizer, text):
    (window,) = windows(PromptTokenizer(tokenizer, SD15, "upstream"), text)
    assert [id for id, _ in content(window)] == [p.id for p in tokenizer.encode_prefixed(text, keep_merged=False)[3:]]


@pytest.mark.parametrize("text", [None, 3, ["a"], b"a"])
def test_what_is_no_text_is_refused(prompts, text):
    with pytest.raises(ValueError, match=f"a prompt is text, and this is a value of type {type(text).__name__}"):
        prompts.tokenize_with_weights(text)


def test_a_prompt_past_the_limits_is_refused(prompts, tokenizer):
    with pytest.raises(ValueError, match="1048577 characters long, and at most 1048576"):
        prompts.tokenize("a" * (2**20 + 1))
    with pytest.raises(
        ValueError, match="takes 3000 windows of the text encoder or more, and at most 2048 are encoded"
    ):
        prompts.tokenize("BREAK a " * 3000)
    for style in ("default", "upstream"):
        with pytest.raises(ValueError, match="tokens or more, and at most 150000 are read"):
            PromptTokenizer(tokenizer, SD15, style).tokenize("x" * 2**20)


@pytest.mark.parametrize("style", ["default", "upstream"])
@pytest.mark.parametrize("look", [1, 2, 3])
def test_reading_a_long_prompt_can_be_stopped(tokenizer, style, look, monkeypatch):
    class Stopped(Exception):
        """What ComfyUI raises, at the n-th look."""

    def longest_wait() -> float:
        def stop():
            moments.append(time.process_time())
            if len(moments) > look:
                raise Stopped

        monkeypatch.setattr(model_management, "throw_exception_if_processing_interrupted", stop)
        moments = [time.process_time()]
        with pytest.raises(Stopped):
            PromptTokenizer(tokenizer, SD15, style).tokenize_with_weights("(x)" * 45_000)
        return max(later - earlier for earlier, later in pairwise(moments))

    monkeypatch.setattr(interrupts, "INTERVAL", 0.01)
    assert any(longest_wait() < 0.5 for _ in range(5))  # a collection of the whole session's garbage may fall into one


@pytest.mark.parametrize("family", FAMILIES)
def test_other_packs_find_a_tokenizer_for_each_key(tokenizer, family):
    """By the names of ComfyUI's own; prompt-control's BREAK looks for `pad_to_max_length` there."""
    prompts = PromptTokenizer(tokenizer, family, "default")
    for key in family.token_keys:
        under_key = getattr(prompts, f"clip_{key}")
        assert under_key.pad_to_max_length and under_key.max_length == family.prefixed_window
        assert under_key.tokenize_with_weights("a (cat:1.2)", True) == windows_of(prompts, "a (cat:1.2)", key)
        assert under_key.untokenize([(EOS, 1.0)]) == [((EOS, 1.0), "</s>")]


def windows_of(prompts, text, key):
    return prompts.tokenize_with_weights(text, return_word_ids=True)[key]


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
