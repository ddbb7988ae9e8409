"""Captions beside images: what is written, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mulan_nodes.mulan.images.captions import caption_file, check_language, one_line, save_captions


def test_a_caption_is_one_line_behind_its_trigger():
    assert one_line("  a red\n\tcat ") == "a red cat" and one_line("猫", " my  style ") == "my style, 猫"
    assert one_line(" \n", "my style") == ""


def test_captions_are_written_beside_their_images(tmp_path):
    images = [tmp_path / name for name in ("2.png", "10.jpg", "é.v2.webp")]
    (tmp_path / "10.txt").write_text("mine", "utf-8")
    written = save_captions(images, ["two", "ten", "日本"], overwrite=False)
    assert [file.name for file in written] == ["2.txt", "é.v2.txt"]
    assert {file.name: file.read_text("utf-8") for file in tmp_path.iterdir()} == {
        "2.txt": "two\n",
        "10.txt": "mine",
        "é.v2.txt": "日本\n",
    }
    assert save_captions(images[1:], ["ten", ""], overwrite=True) == [tmp_path / "10.txt"]
    assert (tmp_path / "10.txt").read_text("utf-8") == "ten\n"
    assert (tmp_path / "é.v2.txt").read_text("utf-8") == "日本\n"


def test_images_that_would_share_a_caption_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="a.png and a.jpg would share a.txt"):
        save_captions([tmp_path / "b.png", tmp_path / "a.png", tmp_path / "a.jpg"], ["x"] * 3, overwrite=True)
    assert not list(tmp_path.iterdir()) and caption_file(Path("x/a.b.png")) == Path("x/a.b.txt")


def test_captions_of_several_languages_stand_beside_each_other(tmp_path):
    images = [tmp_path / "1.png", tmp_path / "a.b.tif"]
    save_captions(images, ["a cat", "a dog"], overwrite=False)
    save_captions(images, ["eine Katze", "ein Hund"], False, "de")
    assert {file.name for file in tmp_path.iterdir()} == {"1.txt", "1.de.txt", "a.b.txt", "a.b.de.txt"}
    assert caption_file(images[1], "de").read_text("utf-8") == "ein Hund\n"


@pytest.mark.parametrize("code", ["de", "zh-TW", " pt_BR ", ""])
def test_codes_of_languages(code):
    assert check_language(code) == code.strip()


@pytest.mark.parametrize("code", ["../x", "de.txt", "a b", "-", "x" * 36, "猫"])
def test_what_is_no_code_of_a_language(code):
    with pytest.raises(ValueError, match="is not the code of a language"):
        check_language(code)
