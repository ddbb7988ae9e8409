"""The grounding decoder (`gdino.`): Grounding DINO with a mask branch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ....mulan.checkpoints.weight_source import WeightSource
from ..fusion import EncoderConfig
from ..grounding_decoder import GroundingConfig, GroundingDecoder
from . import PACKED, Rename, backbone, below, count, sources_of

BACKBONE = "model.backbone.conv_encoder.model."
HEADS = 8
TEMPERATURE = 20

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


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> GroundingConfig:
    """Return the sizes, from the tensors' shapes.

    The numbers of heads and the temperature are those of `config` (config.json's `gdino_config`), else the published
    ones. Raises KeyError where a tensor is missing.
    """
    num_levels, hidden_size = shapes["model.level_embed"]
    encoder_heads = config.get("encoder_attention_heads", HEADS)
    num_heads = config.get("decoder_attention_heads", HEADS)
    encoder, decoder = "model.encoder.layers.0.", "model.decoder.layers.0."
    return GroundingConfig(
        backbone=backbone.configuration(below(BACKBONE, shapes), config.get("backbone_config") or {}),
        encoder=EncoderConfig(
            hidden_size=hidden_size,
            num_layers=count(shapes, "model.encoder.layers."),
            num_heads=encoder_heads,
            intermediate_size=shapes[f"{encoder}deformable_layer.fc1.weight"][0],
            text_num_heads=encoder_heads // 2,
            text_intermediate_size=shapes[f"{encoder}text_enhancer_layer.fc1.weight"][0],
            fusion_num_heads=encoder_heads // 2,
            fusion_hidden_size=shapes[f"{encoder}fusion_layer.attn.vision_proj.weight"][0],
            num_levels=num_levels,
            num_points=shapes[f"{encoder}deformable_layer.self_attn.attention_weights.weight"][0]
            // (encoder_heads * num_levels),
        ),
        query_hidden_size=shapes["patch2query.layers.0.weight"][1],
        num_queries=shapes["model.query_position_embeddings.weight"][0],
        num_layers=count(shapes, "model.decoder.layers."),
        num_heads=num_heads,
        intermediate_size=shapes[f"{decoder}fc1.weight"][0],
        num_points=shapes[f"{decoder}encoder_attn.attention_weights.weight"][0] // (num_heads * num_levels),
        mask_channels=shapes["model.mask_features.weight"][0],
        temperature=config.get("positional_embedding_temperature", TEMPERATURE),
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
