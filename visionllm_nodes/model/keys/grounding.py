"""The grounding decoder's tensors under upstream's names (GroundingDINO), without the prefix `gdino.`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ....mulan.checkpoints.weight_source import WeightSource
from ..fusion import EncoderConfig
from ..grounding_decoder import GroundingConfig, GroundingDecoder
from . import backbone, swin

BACKBONE = "model.backbone.conv_encoder.model."
HEADS = 8
TEMPERATURE = 20

_BOTH = ("weight", "bias")
_ENCODER_LAYER = {
    "fusion.vision_norm": "fusion_layer.layer_norm_vision",
    "fusion.text_norm": "fusion_layer.layer_norm_text",
    "fusion.attention.vision_query": "fusion_layer.attn.vision_proj",
    "fusion.attention.text_key": "fusion_layer.attn.text_proj",
    "fusion.attention.vision_value": "fusion_layer.attn.values_vision_proj",
    "fusion.attention.text_value": "fusion_layer.attn.values_text_proj",
    "fusion.attention.vision_out": "fusion_layer.attn.out_vision_proj",
    "fusion.attention.text_out": "fusion_layer.attn.out_text_proj",
    "text.attention.out_proj": "text_enhancer_layer.self_attn.out_proj",
    "text.attention_norm": "text_enhancer_layer.layer_norm_before",
    "text.feed_forward.layers.0": "text_enhancer_layer.fc1",
    "text.feed_forward.layers.1": "text_enhancer_layer.fc2",
    "text.feed_forward_norm": "text_enhancer_layer.layer_norm_after",
    "deformable.attention_norm": "deformable_layer.self_attn_layer_norm",
    "deformable.feed_forward.layers.0": "deformable_layer.fc1",
    "deformable.feed_forward.layers.1": "deformable_layer.fc2",
    "deformable.feed_forward_norm": "deformable_layer.final_layer_norm",
}
_DECODER_LAYER = {
    "self_attention.out_proj": "self_attn.out_proj",
    "self_norm": "self_attn_layer_norm",
    "text_attention.out_proj": "encoder_attn_text.out_proj",
    "text_norm": "encoder_attn_text_layer_norm",
    "picture_norm": "encoder_attn_layer_norm",
    "feed_forward.layers.0": "fc1",
    "feed_forward.layers.1": "fc2",
    "feed_forward_norm": "final_layer_norm",
}
_DEFORMABLE = {
    "offsets": "sampling_offsets",
    "weights": "attention_weights",
    "value": "value_proj",
    "out": "output_proj",
}
_WHOLE = {
    "proposal_head.project": "model.enc_output",
    "proposal_head.norm": "model.enc_output_norm",
    "norm": "model.decoder.layer_norm",
    "mask_branch.lateral.norm": "model.lateral_convs.0.norm",
    "mask_branch.smooth.norm": "model.output_convs.0.norm",
    "mask_branch.out": "model.mask_features",
}
_HEADS = {  # each with its number of layers
    "query_mlp": ("patch2query", 3),
    "proposal_head.box": ("model.encoder_output_bbox_embed", 3),
    "position_head": ("model.decoder.reference_points_head", 2),
    "box_head": ("model.decoder.bbox_embed.0", 3),
    "mask_head": ("mask_embed.0", 3),
}
# Upstream lists these heads once per layer, and one of them once more at the top: all are the same tensors.
_SHARED = re.compile(r"(?:model\.decoder\.)?(bbox_embed|mask_embed)\.\d+\.")
_DISCARDED = "model.mask_embed."  # a head for the learned queries whose result upstream throws away


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> GroundingConfig:
    """Sizes from the tensors; from `told` (`config.json`'s `gdino_config`) the numbers of heads and the temperature, else the published ones.

    Raises KeyError where a tensor is missing.
    """
    levels, width = shapes["model.level_embed"]
    encoder_heads = told.get("encoder_attention_heads", HEADS)
    heads = told.get("decoder_attention_heads", HEADS)
    encoder, decoder = "model.encoder.layers.0.", "model.decoder.layers.0."
    return GroundingConfig(
        backbone=backbone.configuration(
            {name.removeprefix(BACKBONE): shape for name, shape in shapes.items() if name.startswith(BACKBONE)},
            told.get("backbone_config") or {},
        ),
        encoder=EncoderConfig(
            width=width,
            layers=_count(shapes, "model.encoder.layers."),
            heads=encoder_heads,
            feed_forward=shapes[f"{encoder}deformable_layer.fc1.weight"][0],
            text_heads=encoder_heads // 2,
            text_feed_forward=shapes[f"{encoder}text_enhancer_layer.fc1.weight"][0],
            fusion_heads=encoder_heads // 2,
            fusion_width=shapes[f"{encoder}fusion_layer.attn.vision_proj.weight"][0],
            levels=levels,
            points=shapes[f"{encoder}deformable_layer.self_attn.attention_weights.weight"][0]
            // (encoder_heads * levels),
        ),
        query_width=shapes["patch2query.layers.0.weight"][1],
        queries=shapes["model.query_position_embeddings.weight"][0],
        layers=_count(shapes, "model.decoder.layers."),
        heads=heads,
        feed_forward=shapes[f"{decoder}fc1.weight"][0],
        points=shapes[f"{decoder}encoder_attn.attention_weights.weight"][0] // (heads * levels),
        mask_width=shapes["model.mask_features.weight"][0],
        temperature=told.get("positional_embedding_temperature", TEMPERATURE),
    )


def build(config: GroundingConfig, *, operations, dtype=None, device=None) -> GroundingDecoder:
    kw = dict(operations=operations, dtype=dtype, device=device)
    return GroundingDecoder(config, backbone.build(config.backbone, **kw), **kw)


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    return 1 + max((int(name[len(prefix) :].split(".")[0]) for name in shapes if name.startswith(prefix)), default=-1)


def sources(config: GroundingConfig) -> dict[str, WeightSource]:
    found = {
        "pyramid.level_embedding": "model.level_embed",
        "contents": "model.query_position_embeddings.weight",
        "mask_branch.lateral.conv.weight": "model.lateral_convs.0.weight",
        "mask_branch.smooth.conv.weight": "model.output_convs.0.weight",
    }

    def both(ours: str, published: str):
        found.update({f"{ours}.{kind}": f"{published}.{kind}" for kind in _BOTH})

    def packed(ours: str, published: str):
        found.update({f"{ours}.in_proj.{kind}": f"{published}.in_proj_{kind}" for kind in _BOTH})

    for ours, published in _WHOLE.items():
        both(ours, published)
    for ours, (published, count) in _HEADS.items():
        for layer in range(count):
            both(f"{ours}.layers.{layer}", f"{published}.layers.{layer}")
    for level in range(config.encoder.levels):
        both(f"pyramid.projections.{level}.conv", f"model.input_proj_vision.{level}.0")
        both(f"pyramid.projections.{level}.norm", f"model.input_proj_vision.{level}.1")
    for layer in range(config.encoder.layers):
        ours, published = f"encoder.layers.{layer}", f"model.encoder.layers.{layer}"
        for part, name in _ENCODER_LAYER.items():
            both(f"{ours}.{part}", f"{published}.{name}")
        for part, name in _DEFORMABLE.items():
            both(f"{ours}.deformable.attention.{part}", f"{published}.deformable_layer.self_attn.{name}")
        packed(f"{ours}.text.attention", f"{published}.text_enhancer_layer.self_attn")
        found[f"{ours}.fusion.vision_scale"] = f"{published}.fusion_layer.vision_param"
        found[f"{ours}.fusion.text_scale"] = f"{published}.fusion_layer.text_param"
    for layer in range(config.layers):
        ours, published = f"layers.{layer}", f"model.decoder.layers.{layer}"
        for part, name in _DECODER_LAYER.items():
            both(f"{ours}.{part}", f"{published}.{name}")
        for part, name in _DEFORMABLE.items():
            both(f"{ours}.picture_attention.{part}", f"{published}.encoder_attn.{name}")
        packed(f"{ours}.self_attention", f"{published}.self_attn")
        packed(f"{ours}.text_attention", f"{published}.encoder_attn_text")
    of_backbone = backbone.sources(config.backbone, swin.HUGGING_FACE)
    return {f"backbone.{ours}": source.under(BACKBONE) for ours, source in of_backbone.items()} | {
        ours: WeightSource((published,)) for ours, published in found.items()
    }


def shared(name: str) -> str:
    """The one name that `sources` has for a tensor that the checkpoint may hold under several, or under any of them."""
    head = _SHARED.match(name)
    if head is None:
        return name
    return f"{'model.decoder.' if head[1] == 'bbox_embed' else ''}{head[1]}.0.{name[head.end() :]}"


def unused(name: str) -> bool:
    """The shared heads' other names, the head whose result upstream discards, and what the backbone recomputes."""
    if name.startswith(BACKBONE):
        return backbone.unused(name.removeprefix(BACKBONE))
    return name.startswith(_DISCARDED) or shared(name) != name
