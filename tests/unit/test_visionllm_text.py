"""VisionLLM v2's tokens, tokenizer and questions, where people give it something unusual."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import sentencepiece

from mulan_nodes.visionllm_nodes.detections import class_lists, names, skeletons
from mulan_nodes.visionllm_nodes.model import prompt_templates, special_tokens
from mulan_nodes.visionllm_nodes.model.llama_tokenizer import VisionTokenizer
from mulan_nodes.visionllm_nodes.model.region_mentions import place_regions

GOLDEN = Path(__file__).resolve().parents[1] / "parity" / "goldens" / "mulan" / "tokenizer" / "tokenizer.model"
SCRIPTS = ["cat", "日本の犬", "кошка", "قطة", "แมว", "🐕‍🦺", "Ça_va-bien/ß"]


@pytest.fixture(scope="module")
def model() -> bytes:
    """LLaMA's rules (BPE, bytes for what is unknown, no normalising) on a vocabulary of a few words."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            [
                prompt_templates.VICUNA.system,
                prompt_templates.detection(["cat", "dog"]).user,
                prompt_templates.interactive(2).user,
            ]
        ),
        model_writer=made,
        vocab_size=380,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return made.getvalue()


@pytest.fixture(params=[True, False], ids=["legacy", "not legacy"])
def tokenizer(model, request) -> VisionTokenizer:
    return VisionTokenizer(model, legacy=request.param)


def test_added_tokens_follow_the_vocabulary(tokenizer):
    assert [tokenizer.ids[name] for name in special_tokens.ADDED] == list(
        range(tokenizer.base_size, tokenizer.base_size + 26)
    )
    assert len(tokenizer) == tokenizer.base_size + 26
    for tool in special_tokens.TOOLS:
        ids = tokenizer.encode(special_tokens.tool_text(tool), bos=False)
        assert (
            ids[-special_tokens.count(tool) - 1] == tokenizer.ids[tool]
            and len([id for id in ids if id in tokenizer.names]) == special_tokens.count(tool) + 1
        )


def test_decoding_gives_the_text_back(tokenizer):
    text = "Yes,\nthere are two  cats: " + ", ".join(SCRIPTS)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    answer = prompt_templates.detection(SCRIPTS).assistant
    ids = tokenizer.encode(answer)
    assert tokenizer.decode(ids) == f"Yes, here are the results for {', '.join(SCRIPTS)} in the image."
    assert tokenizer.decode(ids[1:], special=True) == answer
    assert tokenizer.decode([]) == "" and tokenizer.decode([tokenizer.bos, tokenizer.eos]) == ""


def test_an_incomplete_character_decodes_to_a_replacement(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a 🐕")[:-1]).startswith("a \ufffd")


def test_white_space_goes_with_an_added_token(tokenizer):
    assert tokenizer.encode("cat [DET]  dog") == tokenizer.encode("cat[DET]dog")
    assert tokenizer.encode("cat </s> dog") != tokenizer.encode("cat</s>dog")


def test_legacy_decides_the_space_behind_an_added_token(model):
    old, new = (VisionTokenizer(model, legacy=legacy) for legacy in (True, False))
    assert old.encode("the cat") == new.encode("the cat")
    assert old.encode("[DET]cat")[-1:] != new.encode("[DET]cat")[-1:] or len(old.encode("[DET]cat")) != len(
        new.encode("[DET]cat")
    )


def test_images_become_patches(tokenizer):
    ids = tokenizer.encode("USER: <image>\n<image> in", 3, 2)
    assert [id for id in ids if id == tokenizer.ids[special_tokens.PATCH]] == [tokenizer.ids[special_tokens.PATCH]] * 5
    for patches in ((), (1,), (1, 2, 3)):
        with pytest.raises(ValueError, match=f"2 <image>.*there are {len(patches)} images"):
            tokenizer.encode("<image><image>", *patches)


def test_a_prompt_grows_behind_the_image(tokenizer):
    """What stands up to the image keeps its ids whatever is asked, so its keys and values may be kept."""
    first, second = (
        tokenizer.encode(prompt_templates.VICUNA.prompt([turn]), 5)
        for turn in (prompt_templates.caption(), prompt_templates.detection(["cat"]))
    )
    end = len(first) - first[::-1].index(tokenizer.ids[special_tokens.PATCH])
    assert first[:end] == second[:end]


def test_ids_and_legacy_come_from_the_json_files(model):
    size = VisionTokenizer(model).base_size
    ids = {name: size + 3 + number for number, name in enumerate(special_tokens.ADDED)}
    decoder = {str(id): {"content": name, "lstrip": True} for name, id in ids.items()} | {
        "1": {"content": "<s>"},
        "2": {"content": "</s>"},
    }
    for read in (
        VisionTokenizer.from_files(model, {"added_tokens_decoder": decoder, "legacy": False}, None),
        VisionTokenizer.from_files(model, {"legacy": False}, ids),
    ):
        assert {name: read.ids[name] for name in ids} == ids and read.legacy is False and len(read) == size + 29
    for config in (None, {}, {"legacy": None}, {"added_tokens_decoder": {"1": {"content": "<s>"}}}):
        read = VisionTokenizer.from_files(model, config, None)
        assert read.legacy is True and len(read) == size + 26


def test_wrong_tokenizers_are_named(model):
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        VisionTokenizer(b"nothing of the kind")
    llama = {name: 32000 + number for number, name in enumerate(special_tokens.ADDED)}
    with pytest.raises(ValueError, match="belongs to another language model"):
        VisionTokenizer(GOLDEN.read_bytes(), {name: 300 + number for number, name in enumerate(special_tokens.ADDED)})
    with pytest.raises(ValueError, match=r"lacks the tokens \[DET\]"):
        VisionTokenizer(model, {name: id for name, id in llama.items() if name != "[DET]"})
    with pytest.raises(ValueError, match="one id to several"):
        VisionTokenizer(model, llama | {"[DET]": llama["[GRD]"]})
    with pytest.raises(ValueError, match="99999 is not in the vocabulary"):
        VisionTokenizer(model).decode([1, 99999])


def test_lists_of_names():
    for asked in (
        prompt_templates.detection,
        prompt_templates.semantic_segmentation,
        lambda names: prompt_templates.pose(names, skeletons.COCO_17),
        lambda names: prompt_templates.pose(["dog"], names),
    ):
        for wrong, message in (
            ([], "empty"),
            (["cat", " "], "empty"),
            (["cat", "dog", "cat"], "'cat' appears 2 times"),
            ("cat", "a list"),
            (["a [DET] b"], r"contains '\[DET\]'"),
        ):
            with pytest.raises(ValueError, match=message):
                asked(wrong)
        many = [f"kind {number}" for number in range(300)]
        assert sum(
            asked(many).assistant.count(special_tokens.tool_text(tool)) for tool in special_tokens.TOOLS[:4]
        ) in (300, 301, 317)
    assert names.unique_names([" cat", "dog ", "", "cat", "Cat"]) == ["cat", "dog", "Cat"]
    assert all(
        name in prompt_templates.detection(SCRIPTS).user
        and name + special_tokens.tool_text("[DET]") in prompt_templates.detection(SCRIPTS).assistant
        for name in SCRIPTS
    )


def test_cleaning():
    assert names.clean_expression("The man's RED, left-side/top (#2)!") == "the mans red left side top 2"
    assert names.clean_name("Guide_Dog") == "guide dog"
    assert prompt_templates.pose(["Guide_Dog"], ["left_eye"]) == prompt_templates.pose(["guide dog"], ["left eye"])
    assert (
        prompt_templates.grounding("Man, left-side").user
        == prompt_templates.IMAGE_LINE + "Where can we locate the man left side in the image?"
    )
    assert (
        prompt_templates.generation('A "red" fox:  at night!! ').user
        == "Generate image with caption: a red fox at night."
    )
    assert prompt_templates.editing(" make it Snow. ").user == prompt_templates.IMAGE_LINE + "Make it snow."


def test_nothing_to_ask():
    for asked in (
        prompt_templates.grounding,
        prompt_templates.reasoning,
        prompt_templates.short_answer,
        prompt_templates.chat,
        prompt_templates.generation,
        prompt_templates.editing,
        prompt_templates.letter_answer,
    ):
        for text in ("", "  ", "where is <image>?"):
            with pytest.raises(ValueError):
                asked(text)
    for cleaned_away in (prompt_templates.grounding, prompt_templates.generation):
        with pytest.raises(ValueError, match="empty"):
            cleaned_away("(!)")
    with pytest.raises(ValueError, match="no regions"):
        prompt_templates.interactive(0)


def test_formats_and_history():
    turns = prompt_templates.chat("And now?", [("What is it?", "A cat.")])
    assert prompt_templates.VICUNA.prompt(turns).endswith(
        "questions. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: And now? ASSISTANT:"
    )
    assert prompt_templates.INTERNLM2.prompt(turns).endswith(
        "<|im_end|><|im_start|>user\n<image>\nWhat is it?<|im_end|><|im_start|>assistant\nA cat.<|im_end|>"
        "<|im_start|>user\nAnd now?<|im_end|><|im_start|>assistant\n"
    )
    assert "<image>" not in prompt_templates.VICUNA.prompt(prompt_templates.chat("Hello", with_image=False))


def mark(number: int) -> str:
    return f"<reg>region{number}<region></reg>"


@pytest.mark.parametrize(
    ("questions", "placed", "order"),
    [
        (["What is region1?"], [f"What is {mark(1)}?"], [0]),
        (["Is region2 left of Region 1?"], [f"Is {mark(2)} left of {mark(1)}?"], [1, 0]),
        (["region1在region3的哪边"], [f"{mark(1)}在{mark(3)}的哪边"], [0, 2]),
        (["كم region٢؟"], [f"كم {mark(2)}؟"], [1]),
        (["region1, and region1 again", "why region1?"], [f"{mark(1)}, and region1 again", "why region1?"], [0]),
        (["region1?", "and region2?"], [f"{mark(1)}?", f"and {mark(2)}?"], [0, 1]),
        (["xregion1 my_region1 region12345678901 region1"], [f"xregion1 my_region1 region12345678901 {mark(1)}"], [0]),
    ],
)
def test_regions_stand_where_a_conversation_names_them_first(questions, placed, order):
    """Their tokens come once each, in the order of the embeddings; answers of before are left as they are."""
    *before, last = questions
    turns = prompt_templates.chat(last, [(question, "region3 is a cat") for question in before], with_image=False)
    found, indexes = place_regions(turns, 3)
    assert [turn.user for turn in found] == placed and indexes == order
    assert all(turn.assistant == "region3 is a cat" for turn in found[:-1])


@pytest.mark.parametrize(
    ("question", "count", "words"),
    [
        ("region3?", 2, "it names region3, but 2 regions are marked"),
        ("region0?", 1, "it names region0, but 1 region is marked"),
        ("region1?", 0, "it names region1, but no region is marked"),
        ("What is it?", 2, "it names no region. Write region1, region2"),
    ],
)
def test_regions_that_a_question_cannot_name(question, count, words):
    with pytest.raises(ValueError, match=words):
        place_regions(prompt_templates.chat(question), count)


@pytest.mark.parametrize("choice", [class_lists.COCO, class_lists.LVIS])
def test_a_region_is_named_from_a_closed_list_in_upstream_s_words(choice):
    asked = prompt_templates.region_category(choice)
    assert asked.assistant is None and asked.user == (
        "<image>\nWhis is the object category of <reg>region1<region></reg>? "
        f"Answer with the category name from {choice}, and use single word or phrase."
    )
    assert len(class_lists.class_names(choice)) == int(choice.split("-")[1])


@pytest.mark.parametrize("count", [1, 3])
def test_examples_stand_as_in_upstreams_dataset(count):
    """mmic_mask.py: images among the words of the question, "<mask>" is a region without a number, then [DET]."""
    turn = prompt_templates.in_context(count)
    region, tool = "<reg>region<region></reg>", "[DET][EMB][EMB2][EMB3][EMB4]"
    user, assistant = turn.user.replace(region, "<mask>"), turn.assistant.replace(tool, "<mask>")
    assert re.findall("<[^>]*>", user) == ["<image>", "<mask>"] * count + ["<image>"]
    assert re.findall(r"<[^>]*>|\[", assistant) == ["<mask>"]
    with pytest.raises(ValueError, match="no examples"):
        prompt_templates.in_context(0)
