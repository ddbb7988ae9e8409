"""The pose decoder's tensors under upstream's names (UniPose), without the prefix `unipose.`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ....mulan.checkpoints.weight_source import WeightSource
from ..fusion import EncoderConfig
from ..pose_decoder import PoseConfig, PoseDecoder
from . import backbone, swin

BACKBONE = "backbone.0."
NAMED_SIZES = 17  # rows of `hw`, those of COCO's keypoints; the rest are in `hw_append`
DEFORMABLE = {
    "offsets": "sampling_offsets",
    "weights": "attention_weights",
    "value": "value_proj",
    "out": "output_proj",
}
TEXT_LAYER = {
    "attention.in_proj": "self_attn.in_proj",
    "attention.out_proj": "self_attn.out_proj",
    "attention_norm": "norm1",
    "feed_forward.layers.0": "linear1",
    "feed_forward.layers.1": "linear2",
    "feed_forward_norm": "norm2",
}
PICTURE_LAYER = {f"attention.{ours}": f"self_attn.{published}" for ours, published in DEFORMABLE.items()} | {
    "attention_norm": "norm1",
    "feed_forward.layers.0": "linear1",
    "feed_forward.layers.1": "linear2",
    "feed_forward_norm": "norm2",
}
FUSION_LAYER = {
    "vision_norm": "layer_norm_v",
    "text_norm": "layer_norm_l",
    "attention.vision_query": "attn.v_proj",
    "attention.text_key": "attn.l_proj",
    "attention.vision_value": "attn.values_v_proj",
    "attention.text_value": "attn.values_l_proj",
    "attention.vision_out": "attn.out_v_proj",
    "attention.text_out": "attn.out_l_proj",
}
ENCODER_LAYER = {
    "fusion": ("fusion_layers", FUSION_LAYER),
    "text": ("text_layers", TEXT_LAYER),
    "deformable": ("layers", PICTURE_LAYER),
}
DECODER_LAYER = {f"picture_attention.{ours}": f"cross_attn.{published}" for ours, published in DEFORMABLE.items()} | {
    "picture_norm": "norm1",
    "text_attention.in_proj": "ca_text.in_proj",
    "text_attention.out_proj": "ca_text.out_proj",
    "text_norm": "catext_norm",
    "self_attention.in_proj": "self_attn.in_proj",
    "self_attention.out_proj": "self_attn.out_proj",
    "self_norm": "norm2",
    "feed_forward.layers.0": "linear1",
    "feed_forward.layers.1": "linear2",
    "feed_forward_norm": "norm3",
}
# Upstream lists each head once per layer, and once more at the top: all are the same tensors.
HEADS = {"box_head": "bbox_embed", "keypoint_head": "pose_embed", "size_head": "pose_hw_embed"}
SHARED = re.compile(rf"(?:transformer\.decoder\.)?({'|'.join(HEADS.values())})\.\d+\.")


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> PoseConfig:
    """Sizes from the tensors; from `told` (`config.json`'s `unipose_config`) what they do not tell: heads, box layers, temperature.

    `num_groups` is not upstream's, which has 50 in its code: models trained here tell it. Raises KeyError where a tensor is missing,
    ValueError where the sizes do not agree.
    """

    def layers(place: str) -> int:
        return 1 + max((int(name[len(place) :].split(".")[0]) for name in shapes if name.startswith(place)), default=-1)

    levels, width = shapes["transformer.level_embed"]
    heads = told.get("nheads", 8)
    encoder, decoder = "transformer.encoder.", "transformer.decoder."
    return PoseConfig(
        backbone=backbone.configuration(
            {name.removeprefix(BACKBONE): shape for name, shape in shapes.items() if name.startswith(BACKBONE)}, {}
        ),
        query_width=shapes["projection_llava.layers.0.weight"][1],
        encoder=EncoderConfig(
            width=width,
            layers=layers(f"{encoder}layers."),
            heads=heads,
            feed_forward=shapes[f"{encoder}layers.0.linear1.weight"][0],
            text_heads=heads // 2,
            text_feed_forward=shapes[f"{encoder}text_layers.0.linear1.weight"][0],
            fusion_heads=heads // 2,
            fusion_width=shapes[f"{encoder}fusion_layers.0.attn.v_proj.weight"][0],
            levels=levels,
            points=shapes[f"{encoder}layers.0.self_attn.attention_weights.weight"][0] // (heads * levels),
        ),
        temperature=told.get("pe_temperatureH", 20),
        layers=layers(f"{decoder}layers."),
        heads=heads,
        feed_forward=shapes[f"{decoder}layers.0.linear1.weight"][0],
        points=shapes[f"{decoder}layers.0.cross_attn.attention_weights.weight"][0] // (heads * levels),
        queries=shapes["transformer.tgt_embed.weight"][0],
        slots=sum(shapes[name][0] for name in (f"{decoder}hw.weight", f"{decoder}hw_append.weight") if name in shapes),
        box_layers=told.get("num_box_decoder_layers", 2),
        groups=told.get("num_groups", 50),
    )


def build(config: PoseConfig, *, operations, dtype=None, device=None) -> PoseDecoder:
    kw = dict(operations=operations, dtype=dtype, device=device)
    return PoseDecoder(config, backbone.build(config.backbone, **kw), **kw)


def sources(config: PoseConfig) -> dict[str, WeightSource]:
    found = {
        f"backbone.{ours}": source.under(BACKBONE)
        for ours, source in backbone.sources(config.backbone, swin.MICROSOFT).items()
    }

    def both(ours: str, published: str):
        joint = (
            "_" if published.endswith(".in_proj") else "."
        )  # torch.nn.MultiheadAttention's packed projection is no module
        for kind in ("weight", "bias"):
            found[f"{ours}.{kind}"] = WeightSource((f"{published}{joint}{kind}",))

    def perceptron(ours: str, published: str, layers: int = 3):
        for layer in range(layers):
            both(f"{ours}.layers.{layer}", f"{published}.layers.{layer}")

    perceptron("object_mlp", "projection_llava")
    perceptron("keypoint_mlp", "projection_kpt_llava")
    for level in range(config.encoder.levels):
        both(f"pyramid.projections.{level}.conv", f"input_proj.{level}.0")
        both(f"pyramid.projections.{level}.norm", f"input_proj.{level}.1")
    found["pyramid.level_embedding"] = WeightSource(("transformer.level_embed",))
    for layer in range(config.encoder.layers):
        for part, (place, names) in ENCODER_LAYER.items():
            for ours, published in names.items():
                both(f"encoder.layers.{layer}.{part}.{ours}", f"transformer.encoder.{place}.{layer}.{published}")
        for ours, published in (("vision_scale", "gam_v"), ("text_scale", "gam_l")):
            found[f"encoder.layers.{layer}.fusion.{ours}"] = WeightSource(
                (f"transformer.encoder.fusion_layers.{layer}.{published}",)
            )
    both("proposal_head.project", "transformer.enc_output")
    both("proposal_head.norm", "transformer.enc_output_norm")
    perceptron("proposal_head.box", "transformer.enc_out_bbox_embed")
    found["contents.weight"] = WeightSource(("transformer.tgt_embed.weight",))
    perceptron("position_head", "transformer.decoder.ref_point_head", 2)
    for layer in range(config.layers):
        for ours, published in DECODER_LAYER.items():
            both(f"layers.{layer}.{ours}", f"transformer.decoder.layers.{layer}.{published}")
    both("norm", "transformer.decoder.norm")
    for ours, published in HEADS.items():
        perceptron(ours, f"transformer.decoder.{published}.0")
    sizes = ("transformer.decoder.hw.weight", "transformer.decoder.hw_append.weight")
    found["first_sizes.weight"] = WeightSource(sizes if config.slots > NAMED_SIZES else sizes[:1])
    return found


def shared(name: str) -> str:
    """The one name that `sources` has for a tensor that the checkpoint may hold under several, or under any of them."""
    head = SHARED.match(name)
    return name if head is None else f"transformer.decoder.{head[1]}.0.{name[head.end() :]}"


def unused(name: str) -> bool:
    """The heads' other names, and what the backbone recomputes."""
    if name.startswith(BACKBONE):
        return backbone.unused(name.removeprefix(BACKBONE))
    return shared(name) != name
