"""Swin and InternImage against upstream's feature maps, and the full-size ones' tensors."""

import pytest
import torch
from mulan_nodes.visionllm_nodes.model.keys import backbone, swin

GROUNDING, POSE = "model.backbone.conv_encoder.model.", "backbone.0."
TOLERANCE = 5e-5


def below(prefix, named):
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def loaded(tensors, told, names):
    config = backbone.configuration({name: tuple(tensor.shape) for name, tensor in tensors.items()}, told)
    module = backbone.build(config, operations=torch.nn, device="meta")
    module.load_state_dict(
        {ours: source.read(tensors.__getitem__) for ours, source in backbone.sources(config, names).items()},
        strict=True,
        assign=True,
    )
    return module


@torch.no_grad()
def grounding_maps(case):
    module = loaded(below(GROUNDING, case.weights()), case.facts["backbone_config"], swin.HUGGING_FACE)
    sizes, (height, width) = case.facts["inputs"]["image_sizes"], case.facts["inputs"]["pad"]
    images = torch.zeros(len(sizes), 3, height, width)
    for index, (h, w) in enumerate(sizes):
        images[index, :, :h, :w] = case.inputs(f"pixel_values.{index}", (3, h, w))
    return module.widths, module(images)


@pytest.mark.parametrize("name", ["gdino_swin", "gdino_internimage", "gdino_fullwidth"])
def test_maps_of_the_grounding_decoder(vision_case, close, name):
    case = vision_case(name)
    widths, maps = grounding_maps(case)
    assert len(maps) == 4 and tuple(each.shape[1] for each in maps) == widths
    for level, features in enumerate(maps):
        key = f"backbone_feat_{level}"
        if key in case.stored:
            close(features, case.stored[key], f"{name} {key}", TOLERANCE)
        else:
            close(features.mean((2, 3)), case.stored[f"{key}_mean"], f"{name} {key}", TOLERANCE)
            close(features.std((2, 3)), case.stored[f"{key}_std"], f"{name} {key}", TOLERANCE)


@torch.no_grad()
def test_maps_of_the_pose_decoder(vision_case, close):
    case = vision_case("unipose_swin")
    module = loaded(below(POSE, case.weights()), {}, swin.MICROSOFT)
    assert module.config.normed == (False, True, True, True)
    told = case.facts["swin"]
    assert (module.config.width, list(module.config.depths), list(module.config.heads), module.config.window) == (
        told["embed_dim"],
        told["depths"],
        told["num_heads"],
        told["window_size"],
    )
    sizes = case.facts["inputs"]["image_sizes"]
    height, width = (max(sides) + -max(sides) % 32 for sides in zip(*sizes))
    images = torch.zeros(len(sizes), 3, height, width)
    for index, (h, w) in enumerate(sizes):
        images[index, :, :h, :w] = case.inputs(f"image.{index}", (3, h, w))
    for level, features in enumerate(module(images)[1:]):
        close(features, case.stored[f"backbone_feat_{level}"], f"unipose_swin backbone_feat_{level}", TOLERANCE)


@pytest.mark.parametrize(
    "name, prefix, names",
    [
        ("gdino_swin_t", f"gdino.{GROUNDING}", swin.HUGGING_FACE),
        ("unipose_swin_t", f"unipose.{POSE}", swin.MICROSOFT),
        ("gdino_internimage_h", f"gdino.{GROUNDING}", swin.HUGGING_FACE),
        ("unipose_internimage_h", f"unipose.{POSE}", swin.MICROSOFT),
    ],
)
def test_full_size_tensors(vision_manifest, name, prefix, names):
    listed = vision_manifest(name)
    published = {
        tensor: torch.empty(shape, device="meta") for tensor, shape in below(prefix, listed["tensors"]).items()
    }
    module = loaded(published, {}, names)
    used = [tensor for source in backbone.sources(module.config, names).values() for tensor in source.names]
    assert sorted(used) == sorted(tensor for tensor in published if not backbone.unused(tensor))
    if "internimage" in name:
        assert module.config.post_norms == (5, 11, 17, 23, 29) and module.widths == (320, 640, 1280, 2560)
    buffers = below(prefix, {tensor: shape for tensor, shape, _ in listed["int_buffers"]})
    assert all(backbone.unused(buffer) for buffer in buffers)


@torch.no_grad()
def test_a_swin_map_smaller_than_a_window_is_padded_to_one(vision_case):
    """Upstream partitions always: a 32-pixel picture has 1x1 tokens in the last stage."""
    case = vision_case("gdino_swin")
    module = loaded(below(GROUNDING, case.weights()), {}, swin.HUGGING_FACE)
    assert [tuple(features.shape[2:]) for features in module(torch.ones(1, 3, 32, 32))] == [
        (8, 8),
        (4, 4),
        (2, 2),
        (1, 1),
    ]
