"""What InternVL does with too many labels, texts and images, with extreme image files, and with Stop."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from comfy_api.latest import InputImpl
from comfy_api.latest._util import VideoComponents
from PIL import Image

from mulan_nodes.mulan.boundary import limits
from mulan_nodes.mulan.images.image_files import UnreadableImageError, list_images, read_image
from mulan_nodes.mulan.images.tiling import count_tiles, split_into_tiles, to_pixels
from mulan_nodes.mulan.images.video_frames import sample_frames
from mulan_nodes.mulan.internvl import internvl_model, zeroshot
from mulan_nodes.mulan.internvl.image_folder import embed_folder, open_image_folder
from mulan_nodes.mulan.internvl.internvl_loader import load_internvl
from mulan_nodes.mulan.internvl.preprocessing import preprocess
from mulan_nodes.mulan.internvl.ranking import best_pairs
from mulan_nodes.mulan.internvl_chat import chat_language_model
from mulan_nodes.mulan.internvl_chat.chat_loader import load_chat
from mulan_nodes.nodes import internvl_sources
from mulan_nodes.tools.random_checkpoints import internvl_chat as random_chat


@pytest.fixture(scope="module")
def loaded(tiny_models):
    vision, encoder = (tiny_models[name] for name in ("tiny_internvl_vision.safetensors", "tiny_internvl.safetensors"))
    return load_internvl(vision, "C", encoder)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header has any size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


# --- image files ---


@pytest.mark.parametrize(
    "size, words", [((12000, 12000), "it has 12000 x 12000 pixels, and at most 134217728"), ((60000, 60000), "at most")]
)
def test_an_image_is_as_large_as_its_header_says(tmp_path, size, words):
    file = tmp_path / "bomb.png"
    file.write_bytes(png_that_claims(*size))
    with pytest.raises(UnreadableImageError, match=words):
        read_image(file)


def test_what_is_no_image_file_is_neither_listed_nor_read(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    assert [file.name for file in list_images(tmp_path)] == ["a.png"]
    for name in ("pipe.png", "loop.png", "folder.png", "device.png"):
        with pytest.raises(UnreadableImageError, match="it is not a file"):
            read_image(tmp_path / name)


def test_a_postscript_program_is_not_run(tmp_path):
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(UnreadableImageError, match="not an image that can be read"):
        read_image(tmp_path / "a.png")


def test_a_folder_goes_on_behind_a_file_that_is_too_large(loaded, tmp_path):
    for name in "ac":
        Image.new("RGB", (8, 8), (99, 9, ord(name))).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(png_that_claims(15000, 9000))
    found = embed_folder(loaded, open_image_folder(tmp_path), "whole", tmp_path / "cache")
    assert found.names == ("a.png", "c.png") and len(found.vectors) == 2
    assert "15000 x 9000 pixels, and at most" in found.unreadable[0].reason


def test_names_of_files_that_are_no_text_can_be_written_as_json(loaded, tmp_path):
    name = os.fsdecode(b"\xff\xd8.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / name).write_bytes(b"no image")
    found = embed_folder(loaded, open_image_folder(tmp_path), "whole", tmp_path / "cache")
    json.dumps([found.names, found.unreadable], ensure_ascii=False).encode()


def test_images_that_are_returned_from_files_are_bounded(monkeypatch):
    monkeypatch.setattr(internvl_sources, "MAX_RESULT_PIXELS", 250)
    images = internvl_sources.ImageEmbeddings(
        torch.zeros(9, 2), tuple("abcdefghi"), lambda index: torch.zeros(1, 10, 10, 3), read=True
    )
    assert len(images.images([3, 1])) == 2
    with pytest.raises(ValueError, match="top_k: the first 3 of 9 images .* Lower top_k"):
        images.images(range(9))


# --- extreme sizes ---


@pytest.mark.parametrize("height, width", [(1, 1), (3, 2000), (2000, 3), (1, 16384), (16384, 1), (1, 1_000_000)])
@pytest.mark.parametrize("framing", ["crop", "whole"])
def test_images_of_any_shape_are_prepared(height, width, framing):
    prepared = preprocess(torch.full((height, width, 3), 0.5), 224, framing)
    assert prepared.shape == (3, 224, 224) and (prepared - prepared[:, :1, :1]).abs().max() < 1e-5


@pytest.mark.parametrize("width, height", [(1, 1), (300, 20), (20, 300), (640, 480), (5000, 1)])
@pytest.mark.parametrize("most", [1, 6, 12])
def test_tiles_are_counted_before_they_are_made(width, height, most):
    assert count_tiles(width, height, 28, most) == len(split_into_tiles(Image.new("RGB", (width, height)), 28, most))


def test_a_tensor_becomes_bytes_a_few_rows_at_a_time(monkeypatch):
    image = torch.rand(37, 11, 4)
    whole = to_pixels(image)
    monkeypatch.setattr("mulan_nodes.mulan.images.tiling.BLOCK", 100)
    assert (to_pixels(image) == whole).all()
    image[36, 10, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        to_pixels(image)


# --- labels and texts ---


def test_labels_and_sentences_beyond_the_limits(loaded):
    with pytest.raises(ValueError, match="there are 10001 labels, and at most 10000"):
        zeroshot.read_labels("\n".join(map(str, range(limits.MAX_LABELS + 1))))
    with pytest.raises(ValueError, match="4000 labels in 80 templates are 320000 sentences, and at most 200000"):
        zeroshot.embed_labels(loaded, list(map(str, range(4000))), zeroshot.BUILT_IN["en"].sentences)


def test_a_label_in_a_template_of_many_places_stays_short(loaded):
    """A megabyte of each would be a terabyte together."""
    found = zeroshot.embed_labels(loaded, ["word " * 20_000], ["{c}" * 20_000])
    assert found.shape == (1, loaded.model.config.embedding_size)


def test_too_many_scores():
    images, labels = torch.zeros(1, 1).expand(2**15, 1), torch.zeros(1, 1).expand(2**14, 1)
    with pytest.raises(ValueError, match="32768 images with 16384 labels .* at most"):
        zeroshot.classify(images, labels, 1.0)


@pytest.mark.parametrize("text", ["x" * 2**20, "a\u0301" * 2**19, "长" * 2**20, "\ud83d" * 2**20])
def test_a_megabyte_of_text_is_cut_before_it_is_tokenized(loaded, text):
    ids = internvl_model.text_ids(loaded.tokenizer, text)
    assert len(ids) == internvl_model.MAX_TOKENS
    assert ids == internvl_model.text_ids(loaded.tokenizer, text[: 2 * internvl_model.MAX_CHARACTERS])


def test_half_a_character_in_a_label(loaded):
    assert loaded.embed_texts(["a \ud83d b"]).equal(loaded.embed_texts(["a \ufffd b"]))


# --- Stop ---


def test_stop_while_texts_are_tokenized(loaded, stop_soon, monkeypatch):
    timer, pressed = stop_soon
    monkeypatch.setattr(loaded.encoder, "hidden_states", lambda *_: pytest.fail("it was not stopped"), raising=False)
    labels = [f"label {index}" for index in range(2000)]
    timer.start()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        zeroshot.embed_labels(loaded, labels, zeroshot.BUILT_IN["en"].sentences)
    assert time.monotonic() - pressed[0] < 0.5 * 4  # a busy machine takes its time


def test_stop_while_a_folder_is_listed_and_pairs_are_found(tmp_path, stop_soon, monkeypatch):
    timer, pressed = stop_soon
    files = [SimpleNamespace(suffix=".png", name="a.png", is_file=lambda: time.sleep(0.001) or True)] * 10_000
    folder = SimpleNamespace(is_dir=lambda: True, iterdir=lambda: files)
    timer.start()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        list_images(folder)
    assert time.monotonic() - pressed[0] < 0.5 * 4
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        best_pairs(torch.rand(100_000, 16), torch.rand(100_000, 16), 10)


# --- video ---


def test_frames_of_a_video_must_be_images():
    flat = InputImpl.VideoFromComponents(VideoComponents(images=torch.rand(9, 8, 8), frame_rate=24))
    with pytest.raises(ValueError, match="video: expected images"):
        sample_frames(flat, 3)
    one = InputImpl.VideoFromComponents(VideoComponents(images=torch.rand(1, 8, 8, 3), frame_rate=24))
    assert [frame.shape for frame in sample_frames(one, 3)] == [(8, 8, 3)] * 3


# --- chat ---


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_chat(random_chat.checkpoint(tmp_path_factory.mktemp("models") / "InternVL3-tiny"))


def test_a_long_prompt_is_read_in_parts_with_the_same_answer(clip, monkeypatch):
    tokens = clip.tokenize("What is in it? " * 4, images=[torch.rand(28, 60, 3)])
    whole = clip.generate(tokens, do_sample=False, max_length=8)
    rows, bias = [], chat_language_model.causal_bias
    monkeypatch.setattr(chat_language_model, "PREFILL_TOKENS", 7)
    monkeypatch.setattr(
        chat_language_model, "causal_bias", lambda length, count, like: rows.append(count) or bias(length, count, like)
    )
    assert clip.generate(tokens, do_sample=False, max_length=8) == whole
    assert max(rows) == 7 and len(rows) > 5


def test_too_much_is_refused_before_images_are_prepared(clip, monkeypatch):
    monkeypatch.setattr(
        "mulan_nodes.mulan.internvl_chat.chat_prompts.preprocess_tiles", lambda *_: pytest.fail("it was prepared")
    )
    with pytest.raises(ValueError, match="characters long, but .* reads 2048 tokens"):
        clip.tokenize("x" * 100_000)
    with pytest.raises(ValueError, match="2000 images in .* tiles take .* tokens, but .* reads 2048: use fewer"):
        clip.tokenize("Hi", images=[torch.rand(28, 336, 3)] * 2000)
    with pytest.raises(ValueError, match="2084 images in 2084 tiles take"):
        clip.tokenize("Hi", video=torch.zeros(1, 1, 1, 1).expand(50_000, 28, 28, 3))


@pytest.mark.parametrize("image", [torch.rand(28, 28), torch.rand(1, 3, 28, 28), torch.zeros(0, 28, 28, 3)])
def test_what_other_nodes_give_as_an_image_of_generate_text(clip, image):
    with pytest.raises(ValueError, match="images|batch is empty"):
        clip.tokenize("Hi", image=image)


def test_half_a_character_in_a_question(clip):
    assert clip.tokenize("a \ud83d b") == clip.tokenize("a \ufffd b")


@pytest.mark.parametrize("temperature", [float("nan"), float("inf")])
def test_a_temperature_that_is_no_number(clip, temperature):
    with pytest.raises(ValueError, match="temperature must be a number"):
        clip.generate(
            clip.tokenize("Hi"), do_sample=True, max_length=2, temperature=temperature, top_k=0, top_p=0.9, seed=0
        )


def test_hardly_any_temperature(clip):
    asked = dict(max_length=4, top_k=0, top_p=0.9, seed=2**64 - 1)
    greedy = clip.generate(clip.tokenize("Hi"), do_sample=False, max_length=4)
    assert clip.generate(clip.tokenize("Hi"), do_sample=True, temperature=1e-45, **asked) == greedy
