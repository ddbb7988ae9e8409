"""Swin and InternImage against upstream's feature maps, and the full-size ones' tensors."""

import pytest
import torch

from mulan_nodes.visionllm_nodes.model.keys import backbone

GROUNDING, POSE = "model.backbone.conv_encoder.model.", "backbone.0."
TOLERANCE = 5e-5


def below(prefix, named):
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def loaded(tensors, config, hugging_face):
    sizes = backbone.configuration({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config)
    module = backbone.build(sizes, operations=torch.nn, device="meta")
    module.load_state_dict(
        {
            ours: source.read(tensors.__getitem__)
            for ours, source in backbone.sources(sizes, hugging_face=hugging_face).items()
        },
        strict=True,
        assign=True,
    )
    return module


@torch.no_grad()
def grounding_maps(case):
    module = loaded(below(GROUNDING, case.weights()), case.facts["backbone_config"], hugging_face=True)
    sizes, (height, width) = case.facts["inputs"]["image_sizes"], case.facts["inputs"]["pad"]
    images = torch.zeros(len(sizes), 3, height, width)
    for index, (h, w) in enumerate(sizes):
        images[index, :, :h, :w] = case.inputs(f"pixel_values.{index}", (3, h, w))
    return module.channels, module(images)


@pytest.mark.parametrize("name", ["gdino_swin", "gdino_internimage", "gdino_fullwidth"])
def test_maps_of_the_grounding_decoder(vision_case, close, name):
    case = vision_case(name)
    channels, maps = grounding_maps(case)
    assert len(maps) == 4 and tuple(each.shape[1] for each in maps) == channels
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
    module = loaded(below(POSE, case.weights()), {}, hugging_face=False)
    assert module.config.normed == (False, True, True, True)
    swin = case.facts["swin"]
    assert (
        module.config.embed_dim,
        list(module.config.depths),
        list(module.config.num_heads),
        module.config.window_size,
    ) == (swin["embed_dim"], swin["depths"], swin["num_heads"], swin["window_size"])
    sizes = case.facts["inputs"]["image_sizes"]
    height, width = (max(sides) + -max(sides) % 32 for sides in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, height, width)
    for index, (h, w) in enumerate(sizes):
        images[index, :, :h, :w] = case.inputs(f"image.{index}", (3, h, w))
    for level, features in enumerate(module(images)[1:]):
        close(features, case.stored[f"backbone_feat_{level}"], f"unipose_swin backbone_feat_{level}", TOLERANCE)


@pytest.mark.parametrize(
    "name, prefix, hugging_face",
    [
        ("gdino_swin_t", f"gdino.{GROUNDING}", True),
        ("unipose_swin_t", f"unipose.{POSE}", False),
        ("gdino_internimage_h", f"gdino.{GROUNDING}", True),
        ("unipose_internimage_h", f"unipose.{POSE}", False),
    ],
)
def test_full_size_tensors(vision_manifest, name, prefix, hugging_face):
    listed = vision_manifest(name)
    published = {
        tensor: torch.empty(shape, device="meta") for tensor, shape in below(prefix, listed["tensors"]).items()
    }
    module = loaded(published, {}, hugging_face)
    used = [
        tensor
        for source in backbone.sources(module.config, hugging_face=hugging_face).values()
        for tensor in source.names
    ]
    assert sorted(used) == sorted(tensor for tensor in published if not backbone.unused(tensor))
    if "internimage" in name:
        assert module.config.post_norm_blocks == (5, 11, 17, 23, 29) and module.channels == (320, 640, 1280, 2560)
    buffers = below(prefix, {tensor: shape for tensor, shape, _ in listed["int_buffers"]})
    assert all(backbone.unused(buffer) for buffer in buffers)


@torch.no_grad()
def test_a_swin_map_smaller_than_a_window_is_padded_to_one(vision_case):
    """Upstream partitions always: a 32-pixel image has 1x1 tokens in the last stage."""
    case = vision_case("gdino_swin")
    module = loaded(below(GROUNDING, case.weights()), {}, hugging_face=True)
    assert [tuple(features.shape[2:]) for features in module(torch.ones(1, 3, 32, 32))] == [
        (8, 8),
        (4, 4),
        (2, 2),
        (1, 1),
    ]
