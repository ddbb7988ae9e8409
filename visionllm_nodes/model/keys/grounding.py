"""The grounding decoder (`gdino.`): Grounding DINO with a mask branch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ....mulan.checkpoints.config import Config
from ....mulan.checkpoints.weight_check import count_layers, shape_of
from ....mulan.checkpoints.weight_source import WeightSource
from ..grounding_decoder import GroundingConfig, GroundingDecoder
from . import PACKED, TEMPERATURE_RANGE, Rename, backbone, below, encoder_configuration, sources_of

BACKBONE = "model.backbone.conv_encoder.model."
HEADS = 8
TEMPERATURE = 20.0

RENAMES: tuple[Rename, ...] = (
    PACKED,
    (
        r"^(lateral|output)_conv\.(conv\.)?",
        r"\1_convs.0.",
    ),  # there could be several; the norm is inside the convolution
    (r"^(?!patch2query\.|mask_embed\.)", "model."),
    (r"(model\.decoder\.bbox_embed|^mask_embed)\.", r"\1.0."),
)
# These heads are listed once per layer, and one of them once more at the top: all are the same tensors.
_SHARED = re.compile(r"(?:model\.decoder\.)?(bbox_embed|mask_embed)\.\d+\.")
_DISCARDED = "model.mask_embed."  # a head for the learned queries whose result upstream throws away


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Config) -> GroundingConfig:
    """Return the sizes, from the tensors' shapes.

    The numbers of heads and the temperature are those of `config` (config.json's `gdino_config`), else the published
    ones. Raises KeyError where a tensor is missing, ValueError where the shapes do not agree, WrongFileError for
    `config`.
    """
    num_levels, hidden_size = shape_of(shapes, "model.level_embed", 2)
    num_heads = config.heads("decoder_attention_heads", hidden_size, HEADS)
    encoder, decoder = "model.encoder.layers.0.", "model.decoder.layers.0."
    return GroundingConfig(
        backbone=backbone.configuration(below(BACKBONE, shapes), config.section("backbone_config")),
        encoder=encoder_configuration(
            config,
            "encoder_attention_heads",
            HEADS,
            level_embed=(num_levels, hidden_size),
            num_layers=count_layers(shapes, "model.encoder.layers."),
            intermediate_size=shape_of(shapes, f"{encoder}deformable_layer.fc1.weight", 2)[0],
            text_intermediate_size=shape_of(shapes, f"{encoder}text_enhancer_layer.fc1.weight", 2)[0],
            fusion_hidden_size=shape_of(shapes, f"{encoder}fusion_layer.attn.vision_proj.weight", 2)[0],
            attention_weights=shape_of(shapes, f"{encoder}deformable_layer.self_attn.attention_weights.weight", 2)[0],
        ),
        query_hidden_size=shape_of(shapes, "patch2query.layers.0.weight", 2)[1],
        num_queries=shape_of(shapes, "model.query_position_embeddings.weight", 2)[0],
        num_layers=count_layers(shapes, "model.decoder.layers."),
        num_heads=num_heads,
        intermediate_size=shape_of(shapes, f"{decoder}fc1.weight", 2)[0],
        num_points=shape_of(shapes, f"{decoder}encoder_attn.attention_weights.weight", 2)[0]
        // (num_heads * num_levels),
        mask_channels=shape_of(shapes, "model.mask_features.weight", 4)[0],
        temperature=config.number("positional_embedding_temperature", TEMPERATURE, **TEMPERATURE_RANGE),
    )


def build(config: GroundingConfig, *, operations: Any, dtype=None, device=None) -> GroundingDecoder:
    """Make the decoder with its backbone, without values."""
    kw = dict(operations=operations, dtype=dtype, device=device)
    return GroundingDecoder(config, backbone.build(config.backbone, **kw), **kw)


def sources(config: GroundingConfig) -> dict[str, WeightSource]:
    """Return the published tensors of each of the decoder's."""
    own = sources_of(GroundingDecoder(config, nn.Module(), operations=nn, device="meta"), *RENAMES)
    of_backbone = backbone.sources(config.backbone, hugging_face=True)
    return own | {f"backbone.{key}": source.under(BACKBONE) for key, source in of_backbone.items()}


def shared(name: str) -> str:
    """Return the one name that `sources` has for a tensor.

    The checkpoint may hold a shared one under several names, or under any of them.
    """
    head = _SHARED.match(name)
    if head is None:
        return name
    return f"{'model.decoder.' if head[1] == 'bbox_embed' else ''}{head[1]}.0.{name[head.end() :]}"


def unused(name: str) -> bool:
    """Whether nothing reads it.

    That is another name of a shared head, the head whose result upstream discards, or what the backbone recomputes.
    """
    if name.startswith(BACKBONE):
        return backbone.unused(name)
    return name.startswith(_DISCARDED) or shared(name) != name
