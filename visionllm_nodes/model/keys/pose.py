"""The pose decoder (`unipose.`): UniPose.

Layers that the grounding decoder has too bear the names of its checkpoint; here is what they are called in this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ....mulan.checkpoints.weight_source import WeightSource
from ..fusion import EncoderConfig
from ..pose_decoder import PoseConfig, PoseDecoder
from . import PACKED, Rename, backbone, below, count, sources_of

BACKBONE = "backbone.0."
HEADS = ("bbox_embed", "pose_embed", "pose_hw_embed")
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


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> PoseConfig:
    """Return the sizes, from the tensors' shapes and from `config` (config.json's `unipose_config`).

    `config` has heads, box layers and temperature, which no tensor tells; and `num_groups`, which upstream has in its
    code (50) and models trained here write there. Raises KeyError where a tensor is missing, ValueError where the sizes
    do not agree.
    """
    num_levels, hidden_size = shapes["transformer.level_embed"]
    num_heads = config.get("nheads", 8)
    encoder, decoder = "transformer.encoder.", "transformer.decoder."
    return PoseConfig(
        backbone=backbone.configuration(below(BACKBONE, shapes), {}),
        query_hidden_size=shapes["projection_llava.layers.0.weight"][1],
        encoder=EncoderConfig(
            hidden_size=hidden_size,
            num_layers=count(shapes, f"{encoder}layers."),
            num_heads=num_heads,
            intermediate_size=shapes[f"{encoder}layers.0.linear1.weight"][0],
            text_num_heads=num_heads // 2,
            text_intermediate_size=shapes[f"{encoder}text_layers.0.linear1.weight"][0],
            fusion_num_heads=num_heads // 2,
            fusion_hidden_size=shapes[f"{encoder}fusion_layers.0.attn.v_proj.weight"][0],
            num_levels=num_levels,
            num_points=shapes[f"{encoder}layers.0.self_attn.attention_weights.weight"][0] // (num_heads * num_levels),
        ),
        temperature=config.get("pe_temperatureH", 20),
        num_layers=count(shapes, f"{decoder}layers."),
        num_heads=num_heads,
        intermediate_size=shapes[f"{decoder}layers.0.linear1.weight"][0],
        num_points=shapes[f"{decoder}layers.0.cross_attn.attention_weights.weight"][0] // (num_heads * num_levels),
        num_queries=shapes["transformer.tgt_embed.weight"][0],
        num_slots=sum(
            shapes[name][0] for name in (f"{decoder}hw.weight", f"{decoder}hw_append.weight") if name in shapes
        ),
        num_box_layers=config.get("num_box_decoder_layers", 2),
        num_groups=config.get("num_groups", 50),
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
