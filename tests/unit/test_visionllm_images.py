"""Images, regions and answers at their limits: tiny, wide, gray, transparent, empty, not a number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mulan_nodes.mulan.images.tiling import choose_tile_grid, to_pixels
from mulan_nodes.visionllm_nodes.model import regions
from mulan_nodes.visionllm_nodes.model.image_inputs import (
    ImageSettings,
    fixed_point_resize,
    grounding_image,
    pad_to_multiple,
    pose_image,
    tower_images,
)
from mulan_nodes.visionllm_nodes.model.postprocess import (
    boxes_in_pixels,
    instance_masks,
    semantic_map,
    top_per_prompt,
    top_queries,
)

SMALL = ImageSettings(tower=28, tiles=4, short=64, long=96, semantic_short=48, semantic_long=120)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


def test_every_kind_of_image_gives_the_same_pixels():
    pixels = noise(20, 30)
    floats = torch.from_numpy(pixels).float() / 255
    with_alpha = torch.cat((floats, torch.rand(20, 30, 1)), -1)
    for image in (
        pixels,
        torch.from_numpy(pixels),
        floats,
        floats.double(),
        with_alpha,
        Image.fromarray(pixels),
        with_alpha.half(),
    ):
        assert np.array_equal(to_pixels(image), pixels)
    gray = noise(20, 30, 1)
    for image in (
        gray,
        gray[:, :, 0],
        torch.from_numpy(gray).float() / 255,
        Image.fromarray(gray[:, :, 0]),
        np.concatenate((gray, gray // 2), 2),
    ):
        assert np.array_equal(to_pixels(image), gray.repeat(3, 2))
    assert np.array_equal(to_pixels(Image.fromarray(noise(20, 30, 4), "RGBA")), noise(20, 30, 4)[:, :, :3])
    assert to_pixels(torch.full((2, 2, 3), 1.5)).min() == 255 and to_pixels(torch.full((2, 2, 3), -0.5)).max() == 0


def test_values_that_are_not_images_are_refused():
    for value in (float("nan"), float("inf")):
        broken = torch.rand(4, 4, 3)
        broken[1, 2, 0] = value
        with pytest.raises(ValueError, match="no numbers"):
            to_pixels(broken)
    for wrong in (
        torch.rand(1, 4, 4, 3),
        torch.rand(0, 4, 3),
        torch.rand(4, 4, 5),
        np.zeros((4, 4, 3), np.int32),
        torch.rand(4),
    ):
        with pytest.raises(ValueError, match="an image must have the shape"):
            to_pixels(wrong)
    with pytest.raises(ValueError, match="anyres, pad or square"):
        tower_images(noise(4, 4), SMALL, "crop")


@pytest.mark.parametrize("size", [(1, 1), (1, 10000), (10000, 1), (37, 10000), (700, 2)])
def test_extreme_sizes(size):
    image = noise(*size)
    for aspect in ("anyres", "pad", "square"):
        tiles = tower_images(image, SMALL, aspect)
        assert tiles.shape[1:] == (3, 28, 28) and torch.isfinite(tiles).all() and len(tiles) <= 5
    shown = [grounding_image(image, SMALL), grounding_image(image, SMALL, semantic=True), pose_image(image, SMALL)]
    for tensor, longest in zip(shown, (96, 120, 96), strict=False):
        assert (
            tensor.shape[0] == 3 and max(tensor.shape) <= longest + max(size) / min(size) and min(tensor.shape[1:]) >= 1
        )
    batch, mask = pad_to_multiple(shown, 32)
    assert batch.shape[2] % 32 == batch.shape[3] % 32 == 0 and mask.flatten(1).sum(1).tolist() == [
        tensor[0].numel() for tensor in shown
    ]
    assert not batch.permute(0, 2, 3, 1)[~mask].any()


def test_the_two_decoders_round_differently():
    """A image of 720 x 540: 1067 wide for detection, 1066 for pose."""
    settings = ImageSettings()
    assert grounding_image(noise(540, 720), settings).shape == (3, 800, 1067)
    assert pose_image(noise(540, 720), settings).shape == (3, 800, 1066)


def test_fixed_point_resize():
    pixels = noise(13, 17)
    assert np.array_equal(fixed_point_resize(pixels, 13, 17), pixels)
    flat = np.full((5, 7, 3), 201, np.uint8)
    assert (fixed_point_resize(flat, 31, 3) == 201).all()
    halved = fixed_point_resize(pixels[:12, :16], 6, 8).astype(int)
    quads = pixels[:12, :16].astype(int).reshape(6, 2, 8, 2, 3).sum((1, 3))
    assert np.array_equal(halved, (quads + 2) // 4)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), size=(40, 50), mode="bilinear"
    )[0]
    assert np.abs(fixed_point_resize(pixels, 40, 50).astype(float) - smooth.permute(1, 2, 0).numpy()).max() <= 1


def test_tiles_in_reading_order_and_the_whole_last():
    image = np.zeros((56, 56, 3), np.uint8)
    for number, (y, x) in enumerate(((0, 0), (0, 28), (28, 0), (28, 28))):
        image[y : y + 28, x : x + 28] = 60 * number
    assert choose_tile_grid(56, 56, 28, 4) == (2, 2)
    tiles = tower_images(image, SMALL)
    middle_frames = tiles[:, 0, 14, 14]
    assert len(tiles) == 5 and (middle_frames[:4].diff() > 0).all()
    assert len(tower_images(noise(20, 20), SMALL)) == 1


def test_regions_of_boxes():
    (whole, corner, clipped), size = (
        regions.masks_from_boxes([[0, 0, 200, 100], [0, 0, 0, 0], [190, 90, 500, 500]], 100, 200, 28)[:, 0],
        28,
    )
    assert whole.all() and corner.sum() == 1 and corner[0, 0]
    assert clipped.nonzero().min(0).values.tolist() == [25, 26] and clipped[-1, -1] and clipped.sum() == 6
    assert regions.masks_from_points([[199.9, 0]], 100, 200, size)[0, 0].nonzero().tolist() == [[0, 27]]
    for wrong in ([10, 10, 5, 20], [300, 0, 400, 10], [-9, 0, -1, 10], [float("nan"), 0, 1, 1]):
        with pytest.raises(ValueError, match="region 2 is empty"):
            regions.masks_from_boxes([[0, 0, 1, 1], wrong], 100, 200, size)


def test_regions_of_masks():
    mask = torch.zeros(3, 300, 500)
    mask[0, 30:90, 100:400] = 1
    mask[1, 151, 251] = 0.2  # one pixel between the sample points of a size of 28
    mask[2] = 1
    found = regions.masks_from_masks(mask, 28)
    assert found.shape == (3, 1, 28, 28) and found.dtype == torch.bool and found[2].all()
    assert found[1].sum() >= 1 and abs(found[0].float().mean() - mask[0].mean()) < 0.03
    assert regions.masks_from_masks(torch.ones(1, 3, 2, dtype=torch.bool), 28).all()
    with pytest.raises(ValueError, match="region 2 is empty"):
        regions.masks_from_masks(torch.stack((mask[0], torch.zeros(300, 500))), 28)
    with pytest.raises(ValueError, match="shape"):
        regions.masks_from_masks(torch.ones(3, 2), 28)


def test_a_region_beyond_the_best_has_score_zero():
    logits = torch.tensor([[5.0, -5.0], [4.0, -6.0], [3.0, -7.0]])
    found = top_per_prompt(logits, 3)
    assert (
        found.scores[0] > 0.9
        and found.scores[1] == 0
        and found.queries.tolist() == [0, 0]
        and found.labels.tolist() == [0, 1]
    )
    assert (top_per_prompt(logits, 300).scores > 0).all()
    assert len(top_queries(logits, 300).scores) == 6 and len(top_queries(logits[:, :0], 3).scores) == 0


def test_masks_in_pieces_are_the_same(monkeypatch):
    torch.manual_seed(3)
    logits, masks = 4 * torch.randn(9, 4), 4 * torch.randn(9, 8, 10)
    whole = instance_masks(masks, (30, 37), (50, 61)), semantic_map(logits, masks, (30, 37), (50, 61))
    monkeypatch.setattr("mulan_nodes.visionllm_nodes.model.postprocess.MAX_BATCH_ELEMENTS", 1)
    pieces = instance_masks(masks, (30, 37), (50, 61)), semantic_map(logits, masks, (30, 37), (50, 61))
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=False)) and whole[1].unique().numel() > 1
    assert instance_masks(masks[:0], (30, 37), (50, 61)).shape == (0, 50, 61)
    assert boxes_in_pixels(torch.tensor([[0.5, 0.5, 1.0, 0.5]]), (100, 200)).tolist() == [[0, 25, 200, 75]]
