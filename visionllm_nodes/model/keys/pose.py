"""The pose decoder (`unipose.`): UniPose.

Layers that the grounding decoder has too bear the names of its checkpoint; here is what they are called in this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ....mulan.checkpoints.config import Config
from ....mulan.checkpoints.weight_check import count_layers, shape_of
from ....mulan.checkpoints.weight_source import WeightSource
from ..pose_decoder import PoseConfig, PoseDecoder
from . import PACKED, TEMPERATURE_RANGE, Rename, backbone, below, encoder_configuration, sources_of

BACKBONE = "backbone.0."
HEADS = ("bbox_embed", "pose_embed", "pose_hw_embed")
NUM_HEADS, TEMPERATURE, NUM_BOX_LAYERS, NUM_POSE_GROUPS = 8, 20.0, 2, 50  # where the configuration does not say
NAMED_SIZES = 17  # rows of `hw`, those of COCO's keypoints; the rest are in `hw_append`

RENAMES: tuple[Rename, ...] = (
    PACKED,
    # layers
    (r"\.fc([12])\.", r".linear\1."),
    (r"\.layer_norm_(vision|text)\.", lambda found: f".layer_norm_{_LETTER[found[1]]}."),
    (r"\.(values_|out_|)(vision|text)_proj\.", lambda found: f".{found[1]}{_LETTER[found[2]]}_proj."),
    (r"\.(vision|text)_param$", lambda found: f".gam_{_LETTER[found[1]]}"),
    (r"\.layer_norm_before\.", ".norm1."),
    (r"\.layer_norm_after\.", ".norm2."),
    (r"\.encoder_attn_text_layer_norm\.", ".catext_norm."),
    (r"\.encoder_attn_text\.", ".ca_text."),
    (r"\.encoder_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"^(encoder.*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(encoder.*)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(decoder.*)\.self_attn_layer_norm\.", r"\1.norm2."),
    (r"^(decoder.*)\.final_layer_norm\.", r"\1.norm3."),
    # three lists of layers instead of one
    (r"\.layers\.(\d+)\.fusion_layer\.", r".fusion_layers.\1."),
    (r"\.layers\.(\d+)\.text_enhancer_layer\.", r".text_layers.\1."),
    (r"\.layers\.(\d+)\.deformable_layer\.", r".layers.\1."),
    (rf"\.({'|'.join(HEADS)})\.", r".\1.0."),
    (r"^(?!projection_|input_proj\.)", "transformer."),
)
_LETTER = {"vision": "v", "text": "l"}  # l for language
# The heads are listed once per layer, and once more at the top: all are the same tensors.
_SHARED = re.compile(rf"(?:transformer\.decoder\.)?({'|'.join(HEADS)})\.\d+\.")


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Config) -> PoseConfig:
    """Return the sizes, from the tensors' shapes and from `config` (config.json's `unipose_config`).

    `config` has heads, box layers and temperature, which no tensor tells; and `num_groups`, which upstream has in its
    code (50) and models trained here write there. Raises KeyError where a tensor is missing, ValueError where the
    shapes do not agree, WrongFileError for `config`.
    """
    num_levels, hidden_size = shape_of(shapes, "transformer.level_embed", 2)
    num_heads = config.heads("nheads", hidden_size, NUM_HEADS)
    encoder, decoder = "transformer.encoder.", "transformer.decoder."
    num_layers = count_layers(shapes, f"{decoder}layers.")
    num_queries = shape_of(shapes, "transformer.tgt_embed.weight", 2)[0]
    return PoseConfig(
        backbone=backbone.configuration(below(BACKBONE, shapes), config.section("backbone_config")),
        query_hidden_size=shape_of(shapes, "projection_llava.layers.0.weight", 2)[1],
        encoder=encoder_configuration(
            config,
            "nheads",
            NUM_HEADS,
            level_embed=(num_levels, hidden_size),
            num_layers=count_layers(shapes, f"{encoder}layers."),
            intermediate_size=shape_of(shapes, f"{encoder}layers.0.linear1.weight", 2)[0],
            text_intermediate_size=shape_of(shapes, f"{encoder}text_layers.0.linear1.weight", 2)[0],
            fusion_hidden_size=shape_of(shapes, f"{encoder}fusion_layers.0.attn.v_proj.weight", 2)[0],
            attention_weights=shape_of(shapes, f"{encoder}layers.0.self_attn.attention_weights.weight", 2)[0],
        ),
        temperature=config.number("pe_temperatureH", TEMPERATURE, **TEMPERATURE_RANGE),
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=shape_of(shapes, f"{decoder}layers.0.linear1.weight", 2)[0],
        num_points=shape_of(shapes, f"{decoder}layers.0.cross_attn.attention_weights.weight", 2)[0]
        // (num_heads * num_levels),
        num_queries=num_queries,
        num_slots=sum(
            shape_of(shapes, name, 2)[0]
            for name in (f"{decoder}hw.weight", f"{decoder}hw_append.weight")
            if name in shapes
        ),
        # The last layer is one of groups
        num_box_layers=config.integer("num_box_decoder_layers", NUM_BOX_LAYERS, high=num_layers - 1),
        num_groups=config.integer("num_groups", NUM_POSE_GROUPS, high=num_queries),
    )


def build(config: PoseConfig, *, operations: Any, dtype=None, device=None) -> PoseDecoder:
    """Make the decoder with its backbone, without values."""
    kw = dict(operations=operations, dtype=dtype, device=device)
    return PoseDecoder(config, backbone.build(config.backbone, **kw), **kw)


def sources(config: PoseConfig) -> dict[str, WeightSource]:
    """Return the published tensors of each of the decoder's."""
    found = sources_of(PoseDecoder(config, nn.Module(), operations=nn, device="meta"), *RENAMES)
    if config.num_slots > NAMED_SIZES:
        first = found["decoder.hw.weight"].names
        found["decoder.hw.weight"] = WeightSource((*first, "transformer.decoder.hw_append.weight"))
    of_backbone = backbone.sources(config.backbone, hugging_face=False)
    return found | {f"backbone.{key}": source.under(BACKBONE) for key, source in of_backbone.items()}


def shared(name: str) -> str:
    """Return the one name that `sources` has for a tensor.

    The checkpoint may hold a shared one under several names, or under any of them.
    """
    head = _SHARED.match(name)
    return name if head is None else f"transformer.decoder.{head[1]}.0.{name[head.end() :]}"


def unused(name: str) -> bool:
    """Whether it is another name of a head, or what the backbone recomputes."""
    if name.startswith(BACKBONE):
        return backbone.unused(name)
    return shared(name) != name
