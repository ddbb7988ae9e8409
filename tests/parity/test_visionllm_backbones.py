"""Swin and InternImage against upstream's feature maps, and the full-size ones' tensors."""

import pytest
import torch

from mulan_nodes.mulan.checkpoints.config import Config
from mulan_nodes.visionllm_nodes.model.keys import backbone

GROUNDING, POSE = "model.backbone.conv_encoder.model.", "backbone.0."
TOLERANCE = 5e-5


def below(prefix, named):
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def loaded(tensors, config, hugging_face):
    sizes = backbone.configuration({name: tuple(tensor.shape) for name, tensor in tensors.items()}, Config(config))
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


@pytest.mark.golden("gdino")
def test_maps_of_the_grounding_decoder(golden, close, folder):
    channels, maps = grounding_maps(golden)
    assert tuple(each.shape[1] for each in maps) == channels
    for level, features in enumerate(maps):
        key = f"backbone_feat_{level}"
        answers = {key: features, f"{key}_mean": features.mean((2, 3)), f"{key}_std": features.std((2, 3))}
        if golden.stored.keys().isdisjoint(answers):
            folder.absent[f"visionllm/{golden.name}.safetensors#{key}"] = "missing"
        for name in answers.keys() & golden.stored.keys():
            close(answers[name], golden.stored[name], f"{golden.name} {key}", golden.tolerance(key, TOLERANCE))


@torch.no_grad()
@pytest.mark.golden("unipose")
def test_maps_of_the_pose_decoder(golden, close, folder):
    case = golden
    module = loaded(below(POSE, case.weights()), {}, hugging_face=False)
    if "swin" in case.facts:
        ours = {**vars(module.config), "depths": [*module.config.depths], "num_heads": [*module.config.num_heads]}
        assert case.facts["swin"].items() <= ours.items() and module.config.normed[0] is False
    sizes = case.facts["inputs"]["image_sizes"]
    height, width = (max(sides) + -max(sides) % 32 for sides in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, height, width)
    for index, (h, w) in enumerate(sizes):
        images[index, :, :h, :w] = case.inputs(f"image.{index}", (3, h, w))
    for level, features in enumerate(module(images)[1:]):
        key = f"backbone_feat_{level}"
        if key in case.stored:
            close(features, case.stored[key], f"{case.name} {key}", case.tolerance(key, TOLERANCE))
        else:
            folder.absent[f"visionllm/{case.name}.safetensors#{key}"] = "missing"


@pytest.mark.manifests_of(f"gdino.{GROUNDING}")
def test_full_size_tensors_of_the_grounding_decoder(vision_manifest, manifest_name):
    every_tensor_is_read(vision_manifest(manifest_name), f"gdino.{GROUNDING}", hugging_face=True)


@pytest.mark.manifests_of(f"unipose.{POSE}")
def test_full_size_tensors_of_the_pose_decoder(vision_manifest, manifest_name):
    every_tensor_is_read(vision_manifest(manifest_name), f"unipose.{POSE}", hugging_face=False)


def every_tensor_is_read(listed, prefix, hugging_face):
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
    if module.channels[0] == 320:  # InternImage-H
        assert module.config.post_norm_blocks == (5, 11, 17, 23, 29) and module.channels == (320, 640, 1280, 2560)
    buffers = below(prefix, {tensor: shape for tensor, shape, _ in listed["int_buffers"]})
    assert all(backbone.unused(buffer) for buffer in buffers)


@torch.no_grad()
@pytest.mark.golden("gdino")
def test_a_map_smaller_than_a_window_is_padded_to_one(golden):
    """Upstream partitions always: a 32-pixel image has 1x1 tokens in the last stage."""
    module = loaded(below(GROUNDING, golden.weights()), golden.facts.get("backbone_config", {}), hugging_face=True)
    assert [tuple(features.shape[2:]) for features in module(torch.ones(1, 3, 32, 32))] == [
        (8, 8),
        (4, 4),
        (2, 2),
        (1, 1),
    ]
