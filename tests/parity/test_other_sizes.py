"""Sizes that no published model has, against torch's own classes: nothing but the tensors tells them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mulan_nodes.mulan.checkpoints.config import Config
from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, from_published
from mulan_nodes.mulan.conditioning.adapter_sdxl import AdapterShapeXL, LanguageAdapterXL
from mulan_nodes.mulan.conditioning.model_files import open_adapter
from mulan_nodes.visionllm_nodes.model.keys import grounding, mappers
from mulan_nodes.visionllm_nodes.model.pyramid import build_pyramid, level_projections

LAYERS = [(1, 1), (2, 1), (1, 2), (2, 3)]  # of the encoder, of the decoder


def upstream_adapter(encoder: int, decoder: int, *, text=24, width=32, queries=5) -> nn.Module:
    """Upstream's modules, as mulankit and VisionLLM v2 nest them."""
    module = nn.Module()
    module.proj = nn.Sequential(nn.Linear(text, width), nn.GELU(), nn.Linear(width, width))
    module.transformer = nn.Transformer(width, 8, encoder, decoder, 48, 0.0, "relu", batch_first=True, norm_first=True)
    module.queries = nn.Parameter(torch.empty(1, queries, width))
    for parameter in module.parameters():  # norms and biases too: at their first values a wrong layer looks right
        nn.init.normal_(parameter, 0.5 if parameter.dim() == 1 else 0.0, 0.2)
    return module.eval().requires_grad_(False)


def answer(module: nn.Module, states: torch.Tensor) -> torch.Tensor:
    return module.transformer(module.proj(states), module.queries.expand(len(states), -1, -1))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@torch.no_grad()
@pytest.mark.parametrize("layers", LAYERS)
def test_an_adapter_may_have_several_layers(layers, close):
    module = upstream_adapter(*layers)
    published, states = module.state_dict(), torch.randn(2, 7, 24)
    ours = LanguageAdapter(AdapterShape.from_state_dict(published))
    ours.load_state_dict(from_published(published))
    close(ours(states), answer(module, states), "adapter of several layers")


@torch.no_grad()
@pytest.mark.parametrize("layers", LAYERS)
def test_a_mapper_may_have_several_layers(layers, close):
    module = upstream_adapter(*layers, queries=3)
    new = {"queries": "llm2sd_mapper_queries", "proj": "emb_proj", "transformer": "llm2sd_mapper"}
    renamed = {
        ".".join([new[name.split(".")[0]], *name.split(".")[1:]]): tensor
        for name, tensor in module.state_dict().items()
    }
    config = mappers.configuration({name: tuple(tensor.shape) for name, tensor in renamed.items()}, Config({}))
    ours, states = LanguageAdapter(config), torch.randn(2, 7, 24)
    ours.load_state_dict({key: source.read(renamed.__getitem__) for key, source in mappers.sources(config).items()})
    close(ours(states), answer(module, states), "mapper of several layers")


@torch.no_grad()
def test_both_halves_of_sdxl_s_adapter_count_their_own_layers(close):
    halves = upstream_adapter(2, 1, width=32), upstream_adapter(1, 3, width=16)
    pooling = nn.ModuleDict({"linear_1": nn.Linear(9, 12), "linear_2": nn.Linear(12, 12)})
    published = {f"pool_caption_projection.{name}": tensor for name, tensor in pooling.state_dict().items()}
    for number, half in enumerate(halves, 1):
        published |= {f"adapter{number}.{name}": tensor for name, tensor in half.state_dict().items()}
    ours, states = LanguageAdapterXL(AdapterShapeXL.from_state_dict(published)), torch.randn(2, 7, 24)
    ours.load_state_dict(from_published(published))
    close(ours(states), torch.cat([answer(half, states) for half in halves], -1), "adapter of several layers")


def test_a_layer_that_is_missing_is_named(tmp_path):
    published = upstream_adapter(2, 2, width=768).state_dict()
    torch.save({n: t for n, t in published.items() if ".encoder.layers.1.linear2." not in n}, tmp_path / "adapter.pth")
    with pytest.raises(ValueError, match=r"2 tensors are missing.*transformer.encoder.layers.1.linear2.weight"):
        open_adapter(tmp_path / "adapter.pth")
    torch.save({n: t for n, t in published.items() if ".decoder.layers." not in n}, tmp_path / "adapter.pth")
    with pytest.raises(ValueError, match=r"are missing.*transformer.decoder.layers.0"):
        open_adapter(tmp_path / "adapter.pth")


@torch.no_grad()
@pytest.mark.parametrize("num_levels", [3, 4, 5, 6])
def test_a_pyramid_has_as_many_levels_as_the_file(num_levels, close):
    """Upstream: the first level behind the backbone's is made of its last map, every other of the level before."""
    channels = 8, 16, 24
    projections = level_projections(channels, num_levels, 64, operations=nn)
    maps = [torch.randn(1, count, 16 >> level, 20 >> level) for level, count in enumerate(channels)]
    expected = [project(given) for project, given in zip(projections, maps, strict=False)]
    for level in range(3, num_levels):
        expected.append(projections[level](maps[-1] if level == 3 else expected[-1]))
    made = build_pyramid(maps, torch.ones(1, 128, 160).bool(), projections, torch.zeros(num_levels, 64), 20)
    assert made.shapes == tuple(tuple(level.shape[2:]) for level in expected)
    close(made.features, torch.cat([level.flatten(2).mT for level in expected], 1), "pyramid of other levels")


def test_fewer_levels_than_maps_are_refused(vision_manifest):
    manifest = vision_manifest("gdino_swin_t")
    shapes = {name.removeprefix(manifest["prefix"]): tuple(shape) for name, shape in manifest["tensors"].items()}
    with pytest.raises(ValueError, match=r"level_embed has the shape \[2, 256\]|2 levels"):
        grounding.configuration(shapes | {"model.level_embed": (2, 256)}, Config({}))
