"""recall@k of `dev.py eval retrieval`: counted as upstream counts it, and the captions of a folder."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from mulan_nodes.tools.evaluate.retrieval import read_captions, recalls


def test_recall_by_hand():
    """Three images, four captions, the last two of one image."""
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.1, 0.2, 0.3], [0.85, 0.5, 0.4]])
    text_to_image, image_to_text = recalls(scores, [0, 1, 2, 2], ranks=(1, 2, 3))
    assert text_to_image == pytest.approx([2 / 4, 3 / 4, 1]) and image_to_text == pytest.approx([1, 1, 1])
    assert recalls(scores, [1, 0, 2, 2], ranks=(1, 2))[1] == pytest.approx([1 / 3, 1 / 3])


def test_recall_is_upstream_s():
    """One caption for each image: the share whose own is among the k best, in both directions."""
    scores = torch.randn(40, 40, generator=torch.Generator().manual_seed(0)) + 1.5 * torch.eye(40)
    own = scores.diag()
    for matrix, found in zip((scores, scores.T), recalls(scores, range(40)), strict=True):
        above = (matrix > own[:, None]).sum(1)
        assert found == pytest.approx([(above < rank).float().mean().item() for rank in (1, 5, 10)])


def test_captions_stand_beside_images_or_in_one_list(tmp_path):
    for name in ("10.png", "2.png", "3.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "2.txt").write_text("a cat\n\n 猫 \n", "utf-8")
    (tmp_path / "3.txt").write_text("not this\n", "utf-8")
    with pytest.raises(ValueError, match="10.png in .* has no caption"):
        read_captions(tmp_path)
    entries = [
        {"file_name": name, "text": text} for name, text in (("3.jpg", "a dog"), ("10.png", "x"), ("3.jpg", "y"))
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)), "utf-8")
    read = read_captions(tmp_path)
    assert [file.name for file in read.files] == ["2.png", "3.jpg", "10.png"]
    assert read.captions == ["a cat", "猫", "a dog", "y", "x"] and read.owners == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("metadata.jsonl", b"not JSON", "metadata.jsonl, line 1: expected .*, not 'not JSON'"),
        ("metadata.jsonl", b'\n{"file": "1.png"}', "metadata.jsonl, line 2: expected"),
        ("metadata.jsonl", b"[3]", "metadata.jsonl, line 1: expected"),
        ("metadata.jsonl", b'{"file_name": "1.png", "text": ["a"]}', "metadata.jsonl, line 1: expected"),
        ("metadata.jsonl", b'{"file_name": "other.png", "text": "a"}', "1.png in .* has no caption"),
        ("metadata.jsonl", b"[" * 100_000, "metadata.jsonl, line 1: expected"),
        ("1.txt", "caf\u00e9".encode("latin-1"), "1.txt is not UTF-8 text"),
        ("1.txt", b" \n", "1.png in .* has no caption: write it into 1.txt"),
    ],
)
def test_captions_that_cannot_be_read_are_told_by_file_and_line(tmp_path, name, content, words):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_captions(tmp_path)


def test_captions_as_other_programs_write_them(tmp_path):
    """A byte order mark, the line ends of Windows, and a separator of lines inside a text."""
    for number in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    (tmp_path / "0.txt").write_bytes("\ufeffa cat\r\na dog\r\n".encode())
    entry = json.dumps({"file_name": "1.png", "text": "one\u2028two"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(f"\ufeff{entry}\r\n".encode())
    assert read_captions(tmp_path).captions == ["a cat", "a dog", "one\u2028two"]
