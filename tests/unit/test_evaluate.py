"""The evaluation: cases that are comparable between languages, readers that read right, tables that sum up right."""

import json

import numpy as np
import pytest
import torch

from mulan_nodes.tools.evaluate.cases import (
    MULAN,
    OWN_CLIP,
    TINY_WORLD_HEADINGS,
    WITHIN,
    Case,
    ClipSimilarity,
    Row,
    TinyWorldReader,
    as_markdown,
    summarise,
    tiny_world_evaluation,
    tiny_world_rows,
)
from mulan_nodes.tools.tinyworld import captions, world


def case_of(thing: world.Thing, row: str = MULAN, language: str = "zh") -> Case:
    return Case(row, language, captions.full_caption(thing, language), seed=0, expected=thing)


def test_drawn_pictures_read_as_what_was_drawn():
    rng, reader = np.random.default_rng(3), TinyWorldReader()
    for thing in world.THINGS:
        assert reader(world.draw(thing, rng), case_of(thing)) == {"right": 1, "strict": 1, "colour": 1, "shape": 1}, (
            thing
        )


def test_each_score_tells_its_own_mistake():
    reader, asked = TinyWorldReader(), case_of(world.Thing("red", "circle", "big"))

    def scores(colour: str, shape: str) -> dict:
        return reader(world.draw(world.Thing(colour, shape, "small"), np.random.default_rng(5)), asked)

    assert scores("red", "circle") == {"right": 1, "strict": 1, "colour": 1, "shape": 1}
    assert scores("blue", "circle") == {"right": 0, "strict": 0, "colour": 0, "shape": 1}
    assert scores("red", "square") == {"right": 0, "strict": 0, "colour": 1, "shape": 0}


def test_a_second_colour_counts_as_right_but_not_as_strictly_right():
    picture = world.draw(world.Thing("red", "square", "big"), np.random.default_rng(7))
    picture[38:] = np.where(
        np.ptp(picture[38:], axis=-1, keepdims=True) > 80, np.uint8(world.PALETTE["purple"]), picture[38:]
    )
    assert TinyWorldReader()(picture, case_of(world.Thing("red", "square", "big"))) == {
        "right": 1,
        "strict": 0,
        "colour": 1,
        "shape": 1,
    }


@pytest.mark.parametrize(
    "picture",
    [np.full((64, 64, 3), 235, np.uint8), np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)],
    ids=["empty", "noise"],
)
def test_pictures_of_nothing_are_not_right(picture):
    scores = TinyWorldReader()(picture, case_of(world.Thing("red", "star", "big")))
    assert scores["right"] == scores["strict"] == 0


def test_every_language_gets_the_same_things_and_the_same_noise():
    cases = tiny_world_evaluation(48, seed=1)
    lines = {}
    for case in cases:
        lines.setdefault((case.row, case.language, case.expected.held_out), []).append((case.expected, case.seed))
    for held_out, count in ((False, 48), (True, 8)):
        first = lines[MULAN, "en", held_out]
        assert {thing for thing, _ in first} == {thing for thing in world.THINGS if thing.held_out == held_out}
        assert len({seed for _, seed in first}) == count
        assert all(
            draws == first[: len(draws)] for (_, _, of_held_out), draws in lines.items() if of_held_out == held_out
        )
    mixed = {language for _, language, _ in lines if WITHIN in language}
    assert len(mixed) == 56  # pairs of eight scripts
    assert {language for row, language, _ in lines if row == MULAN} == set(captions.LANGUAGES) | mixed
    assert {language for row, language, _ in lines if row == OWN_CLIP} == set(captions.TRAINED)
    assert {len(lines[MULAN, language, False]) for language in captions.LANGUAGES} == {48}
    assert {len(lines[OWN_CLIP, language, False]) for language in captions.TRAINED} == {48, 16}
    assert cases == tiny_world_evaluation(48, seed=1) != tiny_world_evaluation(48, seed=2)


def test_rows_are_means_in_the_order_of_the_cases():
    thing = world.Thing("red", "circle", "big")
    cases = [case_of(thing, MULAN, "zh"), case_of(thing, OWN_CLIP, "en"), case_of(thing, MULAN, "zh")]
    rows = summarise(cases, [{"right": 1.0}, {"right": 1.0}, {"right": 0.0}])
    assert rows == [Row(MULAN, "zh", 2, {"right": 0.5}), Row(OWN_CLIP, "en", 1, {"right": 1.0})]
    with pytest.raises(ValueError):
        summarise(cases, [{"right": 1.0}])


def test_the_tiny_worlds_table_has_its_means_its_held_out_pairs_and_chance():
    cases = tiny_world_evaluation(48, seed=1)
    right = [float(case.language == "en" or case.row == MULAN and not case.expected.held_out) for case in cases]
    table = tiny_world_rows(cases, [{name: value for name in TINY_WORLD_HEADINGS} for value in right])
    rows = {(row.row, row.language): row for row in table}
    assert len(rows) == len(table)
    assert {row.row: row.scores["right"] for row in table if row.language.endswith("but English")} == {
        MULAN: 1,
        OWN_CLIP: 0,
    }
    never_trained = {
        row.language.split(": ")[1]: (row.pictures, row.scores["right"]) for row in table if "pairs" in row.language
    }
    assert never_trained == {"English": (8, 1), "the other languages": (11 * 8, 0)}
    assert rows["", "chance"].scores["right"] == pytest.approx(1 / 24)


def test_markdown():
    rows = [Row(MULAN, "Chinese", 48, {"right": 47 / 48, "other": 1.0}), Row("", "chance", 0, {"right": 1 / 24})]
    assert as_markdown(rows, {"right": "colour and shape", "other": "other"}) == (
        "| prompts | read by | pictures | colour and shape | other |\n"
        "| --- | --- | --: | --: | --: |\n"
        "| Chinese | MuLan | 48 | 0.98 | 1.00 |\n"
        "| chance |  |  | 0.04 |  |\n"
    )


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP model of random weights, saved as transformers saves one."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=16)
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            projection_dim=16,
            text_config=dict(size, vocab_size=len(words), eos_token_id=len(words) - 1),
            vision_config=dict(size, image_size=32, patch_size=8),
        )
    ).save_pretrained(folder)
    CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer
    ).save_pretrained(folder)
    return folder


def test_clip_similarity_compares_a_picture_with_the_meaning_of_its_prompt(clip_folder):
    reader, picture = (
        ClipSimilarity(clip_folder),
        world.draw(world.Thing("red", "star", "big"), np.random.default_rng(0)),
    )

    def similarity(meaning: str, picture=picture) -> float:
        return reader(picture, Case(MULAN, "zh", "一颗大的红色星星", 0, meaning))["similarity"]

    assert -1 <= similarity("a big red star") <= 1
    assert similarity("a big red star") == pytest.approx(similarity("a big red star"))
    assert similarity("a big red star") != pytest.approx(similarity("the sea"), abs=1e-6)
    assert similarity("a big red star") != pytest.approx(similarity("a big red star", picture // 2), abs=1e-6)
    assert -1 <= similarity("word " * 200) <= 1
