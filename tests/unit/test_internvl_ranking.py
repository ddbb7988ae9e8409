"""Ranking and pairs of known vectors, images of folders, and the embeddings kept of them."""

from __future__ import annotations

import os
import shutil
import time

import comfy.model_management
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mulan_nodes.mulan.images.image_files import UnreadableImageError, list_images, read_image
from mulan_nodes.mulan.images.text_drawing import TextRenderer
from mulan_nodes.mulan.internvl import embedding_cache, image_folder
from mulan_nodes.mulan.internvl.image_folder import embed_folder, open_image_folder
from mulan_nodes.mulan.internvl.ranking import Embeddings, best_pairs, check_same_model, mean_embedding, rank
from mulan_nodes.mulan.internvl.similarity_image import draw_similarity


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# --- ranking ---


def test_rank_is_by_score_and_then_by_position():
    scores = torch.tensor([0.1, 0.5, -0.2, 0.5, 0.9, 0.5])
    assert rank(scores) == [4, 1, 3, 5, 0, 2]
    assert rank(scores, top_k=3) == [4, 1, 3] and rank(scores, top_k=99) == rank(scores)
    assert rank(torch.zeros(5000)) == list(range(5000))
    assert (
        rank(scores, threshold=0.5) == [4, 1, 3, 5]
        and rank(scores, 2, 0.5) == [4, 1]
        and rank(scores, threshold=0.95) == []
    )


def test_several_queries_are_their_mean_direction():
    vectors = unit(3, 8)
    assert torch.allclose(mean_embedding(vectors), F.normalize(vectors.sum(0), dim=0), atol=1e-6)
    assert torch.allclose(mean_embedding(vectors[:1]), vectors[0], atol=1e-6)


def test_a_hundred_thousand_vectors():
    vectors = unit(100_000, 32)
    order = rank(vectors @ vectors[77_777], 5)
    assert order[0] == 77_777 and len(order) == 5


def test_best_pairs_of_two_and_of_one():
    a, b = unit(5, 8, seed=1), unit(7, 8, seed=2)
    every = sorted(
        ((row, column, (a[row] @ b[column]).item()) for row in range(5) for column in range(7)),
        key=lambda pair: -pair[2],
    )
    found = best_pairs(a, b, 4)
    assert [pair[:2] for pair in found] == [pair[:2] for pair in every[:4]] and found[0][2] == pytest.approx(
        every[0][2]
    )
    assert len(best_pairs(a, b, 1000)) == 35
    own = best_pairs(a, a, 1000, same=True)
    assert {pair[:2] for pair in own} == {(row, column) for row in range(5) for column in range(row + 1, 5)}
    assert [pair[2] for pair in own] == sorted((pair[2] for pair in own), reverse=True)
    assert best_pairs(a[:1], a[:1], 3, same=True) == []


def test_pairs_are_the_same_in_blocks(monkeypatch):
    a, b = unit(40, 8, seed=1), unit(30, 8, seed=2)
    whole, own = best_pairs(a, b, 10), best_pairs(a, a, 10, same=True)
    monkeypatch.setattr("mulan_nodes.mulan.internvl.ranking.MAX_BLOCK", 90)
    for one, other in zip([*whole, *own], [*best_pairs(a, b, 10), *best_pairs(a, a, 10, same=True)], strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_vectors_of_two_models_are_not_compared():
    check_same_model("a", "x", "b", "x")
    with pytest.raises(
        ValueError, match=r"a: these embeddings were made by another model, mode or precision \(x\) than b \(y\)"
    ):
        check_same_model("a", "x", "b", "y")


# --- the matrix as an image ---


def corner(image: Image.Image, scores: torch.Tensor, row: int, column: int) -> tuple[int, int, int]:
    """The color of a field, near its corner, in an image without names."""
    size = min(64, max(4, 1400 // max(scores.shape)))
    return image.getpixel((32 + column * size + 2, 32 + row * size + 2))


def test_more_alike_is_darker():
    scores = torch.linspace(-1, 1, 6).reshape(2, 3)
    image = draw_similarity(scores, ["", ""], ["", "", ""], TextRenderer())
    shades = [sum(corner(image, scores, row, column)) for row in range(2) for column in range(3)]
    assert shades == sorted(shades, reverse=True) and len(set(shades)) == 6


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (100, 3), (300, 300)])
def test_matrices_of_any_size_are_drawn(size):
    names = [
        [
            f"a rather long name of a picture, and then some more of it, number {number}.png"
            if number % 2
            else "猫 قطة"
            for number in range(count)
        ]
        for count in size
    ]
    image = draw_similarity(torch.rand(size), *names, TextRenderer(sample="猫"))
    assert image.mode == "RGB" and max(image.size) < 2000


# --- image files ---


def random_pixels(seed: int = 0, height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_folder_s_images_in_the_order_people_count(tmp_path):
    for name in ("b10.png", "b2.PNG", "a.webp", "B1.jpeg", ".hidden.png", "notes.txt", "b2.txt"):
        Image.fromarray(random_pixels()).save(tmp_path / name, format="png")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.webp", "B1.jpeg", "b2.PNG", "b10.png"]


def test_a_folder_without_images_says_so(tmp_path):
    (tmp_path / "below").mkdir()
    Image.fromarray(random_pixels()).save(tmp_path / "below" / "x.png")
    with pytest.raises(ValueError, match=f"no image in {tmp_path}.*subfolders are not searched"):
        list_images(tmp_path)
    with pytest.raises(ValueError, match="folder not found: .*nowhere"):
        list_images(tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".gif", ".webp", ".jpg"])
def test_formats(tmp_path, suffix):
    file, pixels = tmp_path / f"x{suffix}", np.full((6, 9, 3), (200, 40, 90), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **({"lossless": True} if suffix == ".webp" else {}))
    read = read_image(file)
    assert read.shape == (6, 9, 3) and read.dtype == torch.float32
    assert np.abs(read.numpy() * 255 - pixels).max() <= (6 if suffix in (".jpg", ".gif") else 1e-3)


def test_images_stand_upright_without_transparency(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise
    Image.fromarray(random_pixels()).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal((read_image(tmp_path / "turned.png").numpy() * 255).round(), np.rot90(random_pixels(), -1))
    Image.fromarray(np.concatenate((random_pixels(), np.zeros((6, 9, 1), np.uint8)), axis=2)).save(
        tmp_path / "clear.png"
    )
    assert np.array_equal((read_image(tmp_path / "clear.png").numpy() * 255).round(), random_pixels())


def test_gray_images_of_one_bit_to_sixteen(tmp_path):
    Image.fromarray(np.full((4, 5), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert torch.allclose(read_image(tmp_path / "deep.png"), torch.full((4, 5, 3), 0.5), atol=1e-4)
    Image.new("1", (5, 4), 1).save(tmp_path / "bits.png")
    assert torch.equal(read_image(tmp_path / "bits.png"), torch.ones(4, 5, 3))


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif")[0, 0, 0] > 0.9


@pytest.mark.parametrize(
    "content, words",
    [(b"", "it is empty"), (b"<!DOCTYPE html>", "not an image that can be read"), ("cut", "truncated")],
)
def test_what_is_no_image_says_why(tmp_path, content, words):
    if content == "cut":
        Image.fromarray(random_pixels(height=200, width=200)).save(tmp_path / "whole.png")
        content = (tmp_path / "whole.png").read_bytes()[:20_000]
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=words):
        read_image(tmp_path / "x.png")


# --- embeddings of a folder ---


class Images:
    """Stands in for a model: an image's mean random_pixels are its vector."""

    mode, name = "C", "standing in"

    def __init__(self, identity: str = "one"):
        self.identity = identity
        self.seen = 0
        self.calls: list[int] = []
        self.stop_after = None

    def steps(self, images: int) -> int:
        return images

    def embed_images(self, images, framing="whole", progress=None):
        self.calls.append(len(images))
        vectors = []
        for start in range(0, len(images), 16):
            for image in (images[index] for index in range(start, min(start + 16, len(images)))):
                if self.seen == self.stop_after:
                    raise comfy.model_management.InterruptProcessingException
                self.seen += 1
                vectors.append(F.normalize(image.mean((0, 1)) + 1e-3, dim=0))
                progress.update(1)
        return torch.stack(vectors)


@pytest.fixture
def album(tmp_path):
    """A folder with five images that were written a while ago."""
    folder = tmp_path / "my album"
    folder.mkdir()
    for number in range(5):
        save(folder / f"{number}.png", number)
    return folder


@pytest.fixture
def old(monkeypatch):
    """Files count as old enough for their times to prove something."""
    monkeypatch.setattr(embedding_cache, "CLOCK_RESOLUTION", -1)


def save(file, seed):
    Image.fromarray(random_pixels(seed)).save(file)


def kept(tmp_path):
    return sorted((tmp_path / "kept").glob("*"))


def embed(model, album):
    return embed_folder(model, open_image_folder(album), "whole", album.parent / "kept")


def test_a_folder_is_embedded_once(album, tmp_path):
    first, again = Images(), Images()
    made, known = embed(first, album), embed(again, album)
    assert first.seen == 5 and again.calls == [] and torch.equal(made.vectors, known.vectors)
    assert made.names == ("0.png", "1.png", "2.png", "3.png", "4.png") and made.unreadable == []
    expected = [F.normalize(read_image(file).mean((0, 1)) + 1e-3, dim=0) for file in made.files]
    assert torch.equal(made.vectors, torch.stack(expected))
    (file,) = kept(tmp_path)
    assert file.name.startswith("my album C whole ") and file.suffix == ".safetensors"


def test_only_what_changed_is_embedded_again(album, tmp_path):
    before = embed(Images(), album)
    save(album / "1.png", 100)
    save(album / "new.png", 101)
    (album / "3.png").rename(album / "33.png")
    shutil.copy(album / "0.png", album / "copy.png")
    (album / "2.png").unlink()
    model = Images()
    after = embed(model, album)
    assert model.seen == 2 and after.names == ("0.png", "1.png", "4.png", "33.png", "copy.png", "new.png")
    vectors = dict(zip(after.names, after.vectors, strict=True))
    assert torch.equal(vectors["0.png"], before.vectors[0]) and torch.equal(vectors["copy.png"], before.vectors[0])
    assert torch.equal(vectors["33.png"], before.vectors[3]) and not torch.equal(vectors["1.png"], before.vectors[1])


def test_images_that_are_gone_are_forgotten(album, tmp_path):
    embed(Images(), album)
    size = kept(tmp_path)[0].stat().st_size
    for number in range(1, 5):
        (album / f"{number}.png").unlink()
    embed(Images(), album)
    assert kept(tmp_path)[0].stat().st_size < size


def test_a_change_that_keeps_size_and_time_is_seen(album, old):
    for number, color in ((0, "red"), (1, "lime")):
        Image.new("RGB", (8, 8), color).save(album / f"{number}.bmp")
    before = embed(Images(), album)
    stat = (album / "0.bmp").stat()
    content = (album / "1.bmp").read_bytes()
    (album / "0.bmp").write_bytes(content)
    os.utime(album / "0.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (album / "0.bmp").stat().st_size == stat.st_size and (album / "0.bmp").stat().st_mtime_ns == stat.st_mtime_ns
    after = embed(Images(), album)
    place = after.names.index("0.bmp")
    assert not torch.equal(after.vectors[place], before.vectors[place]) and torch.equal(
        after.vectors[place], after.vectors[place + 2]
    )


def test_an_unchanged_file_is_not_read_again(album, old, monkeypatch):
    embed(Images(), album)
    read = []
    monkeypatch.setattr(embedding_cache, "file_digest", lambda file: read.append(file.name) or "0" * 64)
    embed(Images(), album)
    assert read == [] if os.name == "posix" else len(read) == 5


def test_a_file_that_was_just_written_is_read_again(album, monkeypatch):
    embed(Images(), album)
    read, content_key = [], embedding_cache.file_digest
    monkeypatch.setattr(embedding_cache, "file_digest", lambda file: read.append(file.name) or content_key(file))
    assert time.time_ns() - (album / "0.png").stat().st_ctime_ns < embedding_cache.CLOCK_RESOLUTION
    embed(Images(), album)
    assert len(read) == 5


def test_models_and_framings_are_kept_apart(album, tmp_path):
    embed(Images("one"), album)
    other = Images("other")
    embed(other, album)
    embed_folder(Images("one"), open_image_folder(album), "crop", tmp_path / "kept")
    assert other.seen == 5 and len(kept(tmp_path)) == 3


def spoil_cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def spoil_empty(file):
    file.write_bytes(b"")


def spoil_other(file):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, file)


def spoil_keys(file):
    file.write_bytes(file.read_bytes().replace(b'"owner":"one whole"', b'"owner":"two whole"'))


def spoil_numbers(file):
    data = file.read_bytes()
    file.write_bytes(data[:-60] + np.full(15, np.nan, np.float32).tobytes())


@pytest.mark.parametrize("spoil", [spoil_cut, spoil_empty, spoil_other, spoil_keys, spoil_numbers])
def test_a_damaged_store_is_made_anew_with_a_warning(album, tmp_path, caplog, spoil):
    made = embed(Images(), album)
    spoil(kept(tmp_path)[0])
    model = Images()
    again = embed(model, album)
    assert model.seen == 5 and torch.equal(made.vectors, again.vectors) and "computed again" in caplog.text
    calm = Images()
    embed(calm, album)
    assert calm.seen == 0


def test_a_disk_that_refuses_is_only_a_warning(album, tmp_path, caplog):
    (tmp_path / "kept").write_text("a file where the folder should be")
    assert len(embed(Images(), album).names) == 5 and "could not be stored" in caplog.text


def test_an_unreadable_image_is_reported_and_the_others_are_embedded(album):
    (album / "1.png").write_bytes(b"no picture")
    (album / "11.png").write_bytes(b"no picture")
    (album / "3.png").write_bytes(b"")
    model = Images()
    made = embed(model, album)
    assert made.names == ("0.png", "2.png", "4.png")
    assert [each.name for each in made.unreadable] == ["1.png", "3.png", "11.png"] and made.unreadable[
        1
    ].reason == "it is empty"
    save(album / "1.png", 1)
    mended = embed(Images(), album)
    assert mended.names == ("0.png", "1.png", "2.png", "4.png")


def test_a_folder_without_a_readable_image(album):
    for file in album.iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the 5 images in .*my album can be read; 0.png: it is not an image"):
        embed(Images(), album)


def test_what_was_done_before_a_stop_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "BATCH_SIZE", 4)
    album = tmp_path / "many"
    album.mkdir()
    for number in range(10):
        save(album / f"{number}.png", number)
    (album / "2.png").write_bytes(b"no picture")
    model = Images()
    model.stop_after = 6
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        embed(model, album)
    rest = Images()
    made = embed(rest, album)
    assert len(made.names) == 9 and [each.name for each in made.unreadable] == ["2.png"]
    assert rest.seen == 7 and max(rest.calls) <= 4, "the three of the first call are known"


def test_progress_counts_files_and_only_grows(album, monkeypatch):
    values = []

    class Bar:
        def __init__(self, total):
            values.append(total)

        def update_absolute(self, value):
            values.append(value)

    monkeypatch.setattr(image_folder.comfy.utils, "ProgressBar", Bar)
    monkeypatch.setattr(image_folder, "BATCH_SIZE", 2)
    embed(Images(), album)
    assert values == [5, 1, 2, 2, 3, 4, 4, 5, 5]


def test_images_are_read_only_when_their_batch_comes(album, monkeypatch):
    """A model that never looks at them never has one in memory."""
    monkeypatch.setattr(image_folder, "read_image", lambda file: pytest.fail(f"{file} was read"))

    class Blind(Images):
        def embed_images(self, images, framing="whole", progress=None):
            assert len(images) == 5
            return torch.ones(5, 3)

    assert len(embed(Blind(), album).names) == 5


def test_names_that_are_no_text(album):
    if os.name != "posix":
        return
    with open(os.fsencode(album) + b"/odd\xff.png", "wb") as file:
        file.write((album / "0.png").read_bytes())
    made = embed(Images(), album)
    assert made.names[-1] == "odd?.png" and len(embed(Images(), album).names) == 6


def test_embeddings_count_their_names():
    assert len(Embeddings(unit(3, 4), ("a", "b", "c"), "text", "x")) == 3
